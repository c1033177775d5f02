/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Changing one end of a packet: address and port, with every checksum that covers them. */

#include "parse.h"

enum end {
	SOURCE,
	DESTINATION,
};

static __always_inline int checksum_offset(const struct packet *p)
{
	return p->l4_off + (p->proto == IPPROTO_TCP ? offsetof(struct tcphdr, check)
						    : offsetof(struct udphdr, check));
}

/* For TCP and UDP. Returns false if the kernel refused; the packet must then be dropped. */
static __always_inline bool rewrite(struct __sk_buff *skb, struct packet *p, enum end end,
				    __be32 addr, __be16 port)
{
	__be32 old_addr = end == SOURCE ? p->saddr : p->daddr;
	__be16 old_port = end == SOURCE ? p->sport : p->dport;
	__u32 addr_off = L3_OFF + (end == SOURCE ? offsetof(struct iphdr, saddr)
						 : offsetof(struct iphdr, daddr));

	/* A later fragment has no transport header of its own. */
	if (!is_later_fragment(p)) {
		/* "No checksum" (zero) in UDP must stay so, and a computed zero must not look like
		 * it. */
		__u64 zero = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
		__u32 check_off = checksum_offset(p);
		__u32 port_off = p->l4_off + (end == SOURCE ? offsetof(struct udphdr, source)
							    : offsetof(struct udphdr, dest));

		if (old_addr != addr && bpf_l4_csum_replace(skb, check_off, old_addr, addr,
							    BPF_F_PSEUDO_HDR | zero | sizeof(addr)))
			return false;
		if (old_port != port &&
		    (bpf_l4_csum_replace(skb, check_off, old_port, port, zero | sizeof(port)) ||
		     bpf_skb_store_bytes(skb, port_off, &port, sizeof(port), 0)))
			return false;
	}
	if (old_addr != addr && (bpf_l3_csum_replace(skb, L3_OFF + offsetof(struct iphdr, check),
						     old_addr, addr, sizeof(addr)) ||
				 bpf_skb_store_bytes(skb, addr_off, &addr, sizeof(addr), 0)))
		return false;

	if (end == SOURCE) {
		p->saddr = addr;
		p->sport = port;
	} else {
		p->daddr = addr;
		p->dport = port;
	}
	return true;
}
