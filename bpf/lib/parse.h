/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the programs want to know of an IPv4 packet. Reads only: nothing here changes the packet. */

#include "common.h"
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#define IP_DONT_FRAGMENT   0x4000
#define IP_MORE_FRAGMENTS  0x2000
#define IP_FRAGMENT_OFFSET 0x1fff

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define L3_OFF ETH_HLEN

/* linux/icmp.h would drag the C library in. */
#define ICMP_ECHOREPLY	   0
#define ICMP_DEST_UNREACH  3
#define ICMP_ECHO	   8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMP_FRAG_NEEDED   4 /* code of ICMP_DEST_UNREACH */

struct icmphdr {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	union {
		struct {
			__be16 id;
			__be16 sequence;
		} echo;
		struct {
			__be16 unused;
			__be16 mtu;
		} frag;
	} un;
};

struct packet {
	__be32 saddr;
	__be32 daddr;
	__be16 sport; /* ICMP echo: its id, in both ports */
	__be16 dport;
	__u32 l4_off;
	__u32 l4_len; /* length of the TCP or UDP header */
	__u32 length; /* of the IP packet */
	__be16 id;    /* of the IP datagram */
	__be16 frag;  /* flags and fragment offset as they stand in the header */
	__u8 proto;
	__u8 tcp_flags;
	__u8 icmp_type;
	bool has_ports; /* known; of a later fragment only once fragments_resolve() found them */
};

static __always_inline bool is_ipv4(const struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IP);
}

static __always_inline bool is_fragment(const struct packet *p)
{
	return p->frag & bpf_htons(IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET);
}

static __always_inline bool is_later_fragment(const struct packet *p)
{
	return p->frag & bpf_htons(IP_FRAGMENT_OFFSET);
}

static __always_inline bool may_fragment(const struct packet *p)
{
	return !(p->frag & bpf_htons(IP_DONT_FRAGMENT));
}

/* TCP or UDP: what services are made of. */
static __always_inline bool is_transport(const struct packet *p)
{
	return p->has_ports && (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP);
}

static __always_inline bool opens_tcp(const struct packet *p)
{
	return p->proto == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Returns false if the packet is cut short or contradicts itself. */
static __always_inline bool parse_ipv4(struct __sk_buff *skb, struct packet *p)
{
	const __u32 wanted = ETH_HLEN + sizeof(struct iphdr) + sizeof(struct tcphdr);
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	const struct iphdr *ip;
	const void *l4;
	__u32 header;

	if (unlikely(data + wanted > end)) {
		/* Short packet, or headers outside the linear part. */
		bpf_skb_pull_data(skb, skb->len < wanted ? skb->len : wanted);
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	ip = data + L3_OFF;
	if ((void *)(ip + 1) > end)
		return false;
	header = ip->ihl * 4;
	if (ip->version != 4 || header < sizeof(*ip))
		return false;

	p->saddr = ip->saddr;
	p->daddr = ip->daddr;
	p->proto = ip->protocol;
	p->id = ip->id;
	p->frag = ip->frag_off;
	p->length = skb->len - L3_OFF;
	p->l4_off = L3_OFF + header;
	p->l4_len = 0;
	p->sport = p->dport = 0;
	p->tcp_flags = 0;
	p->icmp_type = 0;
	p->has_ports = false;
	if (is_later_fragment(p))
		return true;

	/* The verifier follows this pointer, but would not follow one made from p->l4_off. */
	l4 = data + L3_OFF + header;
	if (p->proto == IPPROTO_TCP) {
		const struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end) {
			/* IP options push the header out of what was pulled. */
			bpf_skb_pull_data(skb, p->l4_off + sizeof(*tcp));
			data = (void *)(long)skb->data;
			end = (void *)(long)skb->data_end;
			tcp = data + L3_OFF + header;
			if ((void *)(tcp + 1) > end)
				return false;
		}
		p->sport = tcp->source;
		p->dport = tcp->dest;
		p->tcp_flags = ((const __u8 *)tcp)[13];
		p->l4_len = tcp->doff * 4;
		p->has_ports = true;
	} else if (p->proto == IPPROTO_UDP) {
		const struct udphdr *udp = l4;

		if ((void *)(udp + 1) > end)
			return false;
		p->sport = udp->source;
		p->dport = udp->dest;
		p->l4_len = sizeof(*udp);
		p->has_ports = true;
	} else if (p->proto == IPPROTO_ICMP) {
		const struct icmphdr *icmp = l4;

		if ((void *)(icmp + 1) > end)
			return false;
		p->icmp_type = icmp->type;
		p->l4_len = sizeof(*icmp);
		if (icmp->type == ICMP_ECHO || icmp->type == ICMP_ECHOREPLY) {
			p->sport = p->dport = icmp->un.echo.id;
			p->has_ports = true;
		}
	}
	return true;
}
