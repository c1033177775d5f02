/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Path probes: an echo over the overlay between nodes, answered here, so that it tells of the path
 * and not of any process. UDP between node addresses, VNI 6; an agent sends requests through the
 * tunnel device and reads the result from cm_probes. */

#include "encap.h"
#include "lookup.h"

#define PROBE_PORT    bpf_htons(8473)
#define PROBE_MAGIC   bpf_htonl(0x636d7072) /* "cmpr" */
#define PROBE_REQUEST 1
#define PROBE_REPLY   2

struct probe {
	__be32 magic;
	__u8 kind;
	__u8 pad[3];
	__be32 seq;
	__be64 sent; /* of the requester's clock, returned untouched */
} __attribute__((packed));

static __always_inline bool is_probe(const struct packet *p)
{
	return p->proto == IPPROTO_UDP && p->dport == PROBE_PORT && !is_fragment(p);
}

/* Turns a request into its reply. Swapping the addresses leaves both checksums as they are. */
static __always_inline bool probe_answer(struct __sk_buff *skb, const struct packet *p,
					 const struct probe *probe)
{
	__u32 kind_off = p->l4_off + sizeof(struct udphdr) + offsetof(struct probe, kind);
	__be16 before = bpf_htons(PROBE_REQUEST << 8 | probe->pad[0]);
	__be16 after = bpf_htons(PROBE_REPLY << 8 | probe->pad[0]);
	__be32 swapped[2] = {p->daddr, p->saddr};

	return !bpf_l4_csum_replace(skb, p->l4_off + offsetof(struct udphdr, check), before, after,
				    BPF_F_MARK_MANGLED_0 | sizeof(after)) &&
	       !bpf_skb_store_bytes(skb, kind_off, &after, sizeof(after), 0) &&
	       !bpf_skb_store_bytes(skb, L3_OFF + offsetof(struct iphdr, saddr), swapped,
				    sizeof(swapped), 0);
}

static __always_inline void probe_record(const struct packet *p, const struct probe *probe)
{
	struct cm_probe_key key = {.addr.v4 = p->saddr, .family = CM_FAMILY_V4};
	struct cm_probe_value value = {
	    .sent = bpf_be64_to_cpu(probe->sent),
	    .received = bpf_ktime_get_ns(),
	    .seq = bpf_ntohl(probe->seq),
	};

	value.rtt_us = (value.received - value.sent) / NS_PER_US;
	bpf_map_update_elem(&cm_probes, &key, &value, BPF_ANY);
}

/* Takes a packet that is_probe() and came from a peer's node; VERDICT_NEXT if it is none after all.
 */
static __noinline int probe_handle(struct __sk_buff *skb, const struct cm_config *cfg,
				   const struct sighting *seen)
{
	const struct packet *p = seen->packet;
	struct probe probe;

	if (!p ||
	    bpf_skb_load_bytes(skb, p->l4_off + sizeof(struct udphdr), &probe, sizeof(probe)) ||
	    probe.magic != PROBE_MAGIC)
		return VERDICT_NEXT;
	/* One node must not speak for another. */
	if (p->saddr != seen->outer)
		return dropped(skb, seen, CM_DROP_UNEXPECTED_PROBE);

	if (probe.kind == PROBE_REQUEST) {
		if (!probe_answer(skb, p, &probe))
			return dropped(skb, seen, CM_DROP_FAILED);
		return tunnel_send(skb, cfg, seen, CM_PROBE_ANSWERED);
	}
	probe_record(p, &probe);
	forwarded(skb, cfg, seen, CM_PROBE_RETURNED);
	return VERDICT_DROP; /* it has arrived: no socket waits for it */
}
