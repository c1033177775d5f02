/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Into and out of the tunnel: VXLAN whose VNI is the sender's identity. */

#include "events.h"

/* On skb->mark: the packet has its tunnel key, the tunnel's egress program need not look at it. The
 * mark does not survive the tunnel device and cannot come from inside a pod. */
#define MARK_KEYED 0x636d0001

#define TUNNEL_TTL 64

/* Kernels before 5.19 do not know a tunnel key's local address; they want the shorter key. */
#define TUNNEL_KEY_SHORT offsetof(struct bpf_tunnel_key, local_ipv4)

static __always_inline bool tunnel_key_set(struct __sk_buff *skb, const struct cm_config *cfg,
					   __u32 identity, __be32 remote)
{
	struct bpf_tunnel_key key;

	/* Not by an initialiser, which leaves the rest of the unions undefined: older verifiers
	 * refuse. */
	__builtin_memset(&key, 0, sizeof(key));
	key.tunnel_id = identity;
	key.remote_ipv4 = bpf_ntohl(remote);
	key.tunnel_ttl = TUNNEL_TTL;
	/* The receiver knows this node by one address; routing might pick another. */
	key.local_ipv4 = bpf_ntohl(cfg->node_ip.v4);

	return likely(!bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX)) ||
	       !bpf_skb_set_tunnel_key(skb, &key, TUNNEL_KEY_SHORT, BPF_F_ZERO_CSUM_TX);
}

/* Sends a packet into the tunnel from any program but the tunnel's own egress. */
static __always_inline int tunnel_send(struct __sk_buff *skb, const struct cm_config *cfg,
				       const struct sighting *seen, enum cm_code code)
{
	if (!tunnel_key_set(skb, cfg, seen->identity, seen->outer))
		return dropped(skb, seen, CM_DROP_FAILED);
	forwarded(skb, cfg, seen, code);
	skb->mark = MARK_KEYED;
	return bpf_redirect(cfg->tunnel_ifindex, 0);
}

/* Sender's identity and outer address of a packet that arrived. */
static __always_inline bool tunnel_key_get(struct __sk_buff *skb, __u32 *identity, __be32 *remote)
{
	struct bpf_tunnel_key key = {};

	if (bpf_skb_get_tunnel_key(skb, &key, TUNNEL_KEY_SHORT, 0))
		return false;
	*identity = key.tunnel_id;
	*remote = bpf_htonl(key.remote_ipv4);
	return true;
}
