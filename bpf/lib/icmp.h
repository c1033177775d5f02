/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* ICMP errors about a pod's service flow quote the packet as it was sent to the backend; the pod
 * knows only the service, so the quotation is translated back. */

#include "lb.h"

static __always_inline bool is_icmp_error(const struct packet *p)
{
	return p->proto == IPPROTO_ICMP && !is_later_fragment(p) &&
	       (p->icmp_type == ICMP_DEST_UNREACH || p->icmp_type == ICMP_TIME_EXCEEDED ||
		p->icmp_type == ICMP_PARAMETERPROB);
}

/* Returns false if the kernel refused; the packet must then be dropped. */
static __noinline int icmp_error_translate(struct __sk_buff *skb, const struct packet *p)
{
	__u32 quoted_off = p->l4_off + sizeof(struct icmphdr);
	const struct cm_ct_value *entry;
	struct cm_ct_key key;
	struct iphdr quoted;
	__be16 ports[2];
	__u32 ports_off;
	__be32 addr;
	__be16 port;

	if (bpf_skb_load_bytes(skb, quoted_off, &quoted, sizeof(quoted)))
		return true;
	if (quoted.version != 4 || (quoted.frag_off & bpf_htons(IP_FRAGMENT_OFFSET)) ||
	    (quoted.protocol != IPPROTO_TCP && quoted.protocol != IPPROTO_UDP))
		return true;
	ports_off = quoted_off + quoted.ihl * 4;
	if (bpf_skb_load_bytes(skb, ports_off, ports, sizeof(ports)))
		return true;
	key = ct_key(CM_CT_REPLY, quoted.daddr, ports[1], quoted.saddr, ports[0], quoted.protocol);
	entry = bpf_map_lookup_elem(&cm_ct, &key);
	if (!entry)
		return true;
	addr = entry->addr.v4;
	port = entry->port;

	/* The quoted header's own checksum takes up the change of address, so the ICMP checksum
	 * over both stays as it is; only the port shows in it. */
	if (bpf_l3_csum_replace(skb, quoted_off + offsetof(struct iphdr, check), quoted.daddr, addr,
				sizeof(addr)) ||
	    bpf_skb_store_bytes(skb, quoted_off + offsetof(struct iphdr, daddr), &addr,
				sizeof(addr), 0) ||
	    bpf_l4_csum_replace(skb, p->l4_off + offsetof(struct icmphdr, checksum), ports[1], port,
				sizeof(port)) ||
	    bpf_skb_store_bytes(skb, ports_off + sizeof(ports[0]), &port, sizeof(port), 0))
		return false;
	return true;
}
