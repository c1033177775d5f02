/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Pods keep their MTU although the tunnel carries less: TCP is told by its MSS, everything else by
 * ICMP "fragmentation needed". What may be fragmented is left to the outer packet. */

#include "maps.h"
#include "parse.h"

#define TCP_OPT_END 0
#define TCP_OPT_NOP 1
#define TCP_OPT_MSS 2
#define TCP_OPTIONS 10 /* looked at before giving up */

#define MSS_OVERHEAD (sizeof(struct iphdr) + sizeof(struct tcphdr))

/* Beyond the quoted IP header: what a checksum still to be filled in lies within (TCP: 18 bytes).
 */
#define QUOTED_PAYLOAD	20
#define QUOTED_MAX	(60 + QUOTED_PAYLOAD)
#define FRAG_NEEDED_LEN (sizeof(struct iphdr) + sizeof(struct icmphdr))

/* Largest packet on the wire that this one makes: of a segmentation offload, its segments. */
static __always_inline __u32 wire_length(const struct __sk_buff *skb, const struct packet *p)
{
	if (skb->gso_size)
		return p->l4_off - L3_OFF + p->l4_len + skb->gso_size;
	return p->length;
}

static __noinline int mss_lower(struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	__u32 check_off = p->l4_off + offsetof(struct tcphdr, check);
	__u32 off = p->l4_off + sizeof(struct tcphdr);
	__u32 end = p->l4_off + p->l4_len;
	__u16 limit = mtu - MSS_OVERHEAD;
	int i;

	for (i = 0; i < TCP_OPTIONS; i++) {
		__u8 option[4] = {};

		if (off + sizeof(option) > end ||
		    bpf_skb_load_bytes(skb, off, option, sizeof(option)))
			return true;
		if (option[0] == TCP_OPT_END)
			return true;
		if (option[0] == TCP_OPT_NOP) {
			off += 1;
			continue;
		}
		if (option[0] == TCP_OPT_MSS) {
			__u16 mss = (__u16)option[2] << 8 | option[3];
			__be16 before = bpf_htons(mss), after = bpf_htons(limit);

			if (option[1] != sizeof(option) || mss <= limit)
				return true;
			if (bpf_skb_store_bytes(skb, off + 2, &after, sizeof(after), 0))
				return false;
			/* At an odd distance the bytes fall into the other halves of the sum. */
			if ((off - p->l4_off) & 1) {
				before = __builtin_bswap16(before);
				after = __builtin_bswap16(after);
			}
			return !bpf_l4_csum_replace(skb, check_off, before, after, sizeof(after));
		}
		if (option[1] < 2)
			return true;
		off += option[1];
	}
	return true;
}

/* On a SYN, makes both ends keep their segments within `mtu`. False if the kernel refused. */
static __always_inline bool mss_clamp(struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	if (likely(!(p->tcp_flags & TCP_SYN)))
		return true;
	return mtu <= MSS_OVERHEAD || mss_lower(skb, p, mtu);
}

/* Replaces the packet by an ICMP error about it, addressed to its sender. False if it failed. */
static __noinline int frag_needed(struct __sk_buff *skb, const struct packet *p,
				  const struct cm_config *cfg)
{
	__u32 quoted = p->l4_off - L3_OFF + QUOTED_PAYLOAD;
	__u8 quotation[QUOTED_MAX];
	struct icmphdr icmp = {
	    .type = ICMP_DEST_UNREACH,
	    .code = ICMP_FRAG_NEEDED,
	    .un.frag.mtu = bpf_htons(cfg->tunnel_mtu),
	};
	struct iphdr ip = {
	    .version = 4,
	    .ihl = sizeof(ip) / 4,
	    .tot_len = bpf_htons(FRAG_NEEDED_LEN + quoted),
	    .ttl = 64,
	    .protocol = IPPROTO_ICMP,
	    .saddr = cfg->node_ip.v4,
	    .daddr = p->saddr,
	};
	__s64 sum;

	if (quoted > sizeof(quotation) || quoted < MSS_OVERHEAD)
		return false;
	if (bpf_skb_load_bytes(skb, L3_OFF, quotation, quoted) ||
	    bpf_skb_change_tail(skb, L3_OFF + quoted, 0) ||
	    bpf_skb_adjust_room(skb, FRAG_NEEDED_LEN, BPF_ADJ_ROOM_MAC, 0))
		return false;

	sum = bpf_csum_diff(NULL, 0, (__be32 *)quotation, quoted, 0);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&icmp, sizeof(icmp), sum);
	sum = (sum & 0xffff) + (sum >> 16);
	icmp.checksum = ~(sum + (sum >> 16));
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0);
	sum = (sum & 0xffff) + (sum >> 16);
	ip.check = ~(sum + (sum >> 16));
	return !bpf_skb_store_bytes(skb, L3_OFF, &ip, sizeof(ip), 0) &&
	       !bpf_skb_store_bytes(skb, L3_OFF + sizeof(ip), &icmp, sizeof(icmp), 0);
}
