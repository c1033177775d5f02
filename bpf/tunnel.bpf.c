// SPDX-License-Identifier: Apache-2.0
/* On the VXLAN device: what arrives from the peers' nodes (from_tunnel) and what this node sends
 * there (to_tunnel). */

#include "lib/encap.h"
#include "lib/frags.h"
#include "lib/icmp.h"
#include "lib/lb.h"
#include "lib/mtu.h"
#include "lib/probe.h"

/* May this address of that node speak under this identity?
 *
 * Numbers above the reserved ones say whose they are. Reserved ones belong to no cluster: a node
 * speaks as a node, or for the world when it hands on what came from there, by an address of its
 * own; a helper of a Cilium node (health, ingress) or a well-known pod has such a number in its
 * record and speaks under that alone. Whoever is known by a node's range alone has no record. */
static __always_inline bool identity_fits(const struct cm_config *cfg, __u32 identity,
					  const struct cm_node_value *node,
					  const struct cm_ipcache_value *from)
{
	if (likely(identity >= IDENTITY_RESERVED_LIMIT))
		return identity >> (cfg->identity_shift & 31) == node->cluster_id &&
		       !(from->flags & CM_IPCACHE_NODE);
	if (from->identity >= IDENTITY_RESERVED_LIMIT || from->flags & CM_IPCACHE_CIDR)
		return false;
	if (identity == IDENTITY_WORLD || identity == IDENTITY_WORLD_IPV4)
		return from->identity == IDENTITY_REMOTE_NODE;
	return identity == IDENTITY_REMOTE_NODE || identity == from->identity;
}

/* Is the sender who it says it is? 0, or the reason to drop.
 *
 * The outer source must be a peer's node, the inner source an address that lives on that very
 * node, and the identity one that this address may have. */
static __always_inline enum cm_code sender_refused(const struct cm_config *cfg,
						   const struct sighting *seen,
						   const struct cm_ipcache_value **source)
{
	const struct cm_node_value *node = node_lookup(seen->outer);
	const struct cm_ipcache_value *from;

	if (!node)
		return CM_DROP_UNKNOWN_NODE;
	from = ipcache_lookup(seen->packet->saddr);
	if (!from || from->cluster_id != node->cluster_id)
		return CM_DROP_UNKNOWN_SOURCE;
	if (from->flags & CM_IPCACHE_HAS_TUNNEL) {
		if (from->tunnel.v4 != seen->outer)
			return CM_DROP_UNKNOWN_SOURCE;
	} else if (!(from->flags & CM_IPCACHE_NODE)) {
		return CM_DROP_UNKNOWN_SOURCE;
	}
	if (!identity_fits(cfg, seen->identity, node, from))
		return CM_DROP_FOREIGN_IDENTITY;
	*source = from;
	return 0;
}

SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	struct packet p;
	struct sighting seen = {.point = CM_AT_FROM_TUNNEL};
	const struct cm_ipcache_value *source = NULL;
	const struct cm_endpoint_value *endpoint;
	const struct cm_config *cfg;
	enum cm_code refused;

	if (unlikely(!tunnel_key_get(skb, &seen.identity, &seen.outer)))
		return dropped(skb, &seen, CM_DROP_NO_TUNNEL_KEY);
	if (unlikely(!is_ipv4(skb)))
		return dropped(skb, &seen, CM_DROP_UNSUPPORTED);
	cfg = config_get();
	if (unlikely(!cfg))
		return dropped(skb, &seen, CM_DROP_NOT_CONFIGURED);
	if (unlikely(!parse_ipv4(skb, &p)))
		return dropped(skb, &seen, CM_DROP_MALFORMED);
	seen.packet = &p;
	fragments_resolve(&p);

	refused = sender_refused(cfg, &seen, &source);
	if (unlikely(refused))
		return dropped(skb, &seen, refused);
	endpoint = endpoint_lookup(p.daddr);
	if (unlikely(!endpoint))
		return dropped(skb, &seen, CM_DROP_NO_ENDPOINT);

	if (unlikely(is_host(endpoint))) {
		if (is_probe(&p) && seen.identity == IDENTITY_REMOTE_NODE) {
			int verdict = probe_handle(skb, cfg, &seen);

			if (verdict != VERDICT_NEXT)
				return verdict;
		}
		forwarded(skb, cfg, &seen, CM_TO_NODE);
		/* The frame carries the MAC address of a veth on the sender's side. */
		bpf_skb_change_type(skb, 0 /* PACKET_HOST */);
		return VERDICT_NEXT;
	}

	if (source && !(source->flags & CM_IPCACHE_HAS_TUNNEL) && p.has_ports)
		ct_return_record(&p, seen.outer);
	forwarded(skb, cfg, &seen, CM_TO_POD);
	if (!reply_translate(skb, &p) || (is_icmp_error(&p) && !icmp_error_translate(skb, &p)) ||
	    !mss_clamp(skb, &p, cfg->tunnel_mtu))
		return dropped(skb, &seen, CM_DROP_FAILED);
	bpf_skb_change_type(skb, 0 /* PACKET_HOST */);
	return bpf_redirect_peer(endpoint->ifindex, 0);
}

/* Whose identity the node may send under: its own when the packet began here, a pod's when it came
 * in through that pod's own device (which has no program of ours yet). 0 = nobody's. */
static __always_inline __u32 sender_identity(const struct __sk_buff *skb, __be32 saddr)
{
	const struct cm_endpoint_value *sender = endpoint_lookup(saddr);

	if (!sender)
		return 0;
	if (is_host(sender))
		return skb->ingress_ifindex ? 0 : IDENTITY_REMOTE_NODE;
	return skb->ingress_ifindex == sender->ifindex ? sender->identity : 0;
}

SEC("tc")
int to_tunnel(struct __sk_buff *skb)
{
	struct packet p;
	struct sighting seen = {.point = CM_AT_TO_TUNNEL};
	const struct cm_ipcache_value *target;
	const struct cm_config *cfg;

	if (likely(skb->mark == MARK_KEYED)) {
		skb->mark = 0; /* the outer packet is routed by it */
		return VERDICT_NEXT;
	}
	if (!is_ipv4(skb))
		return dropped(skb, &seen, CM_DROP_UNSUPPORTED);
	cfg = config_get();
	if (!cfg)
		return dropped(skb, &seen, CM_DROP_NOT_CONFIGURED);
	if (!parse_ipv4(skb, &p))
		return dropped(skb, &seen, CM_DROP_MALFORMED);
	seen.packet = &p;

	target = ipcache_lookup(p.daddr);
	if (target && target->flags & CM_IPCACHE_HAS_TUNNEL)
		seen.outer = target->tunnel.v4;
	else if (is_probe(&p) && node_lookup(p.daddr))
		seen.outer = p.daddr;
	else
		return dropped(skb, &seen, CM_DROP_NO_ROUTE);

	seen.identity = sender_identity(skb, p.saddr);
	if (!seen.identity)
		return dropped(skb, &seen, CM_DROP_SPOOFED_SOURCE);
	if (!mss_clamp(skb, &p, cfg->tunnel_mtu) ||
	    !tunnel_key_set(skb, cfg, seen.identity, seen.outer))
		return dropped(skb, &seen, CM_DROP_FAILED);
	forwarded(skb, cfg, &seen, CM_TO_TUNNEL);
	return VERDICT_NEXT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
