// SPDX-License-Identifier: Apache-2.0
/* On the host side of a pod's veth: what the pod sends (from_pod) and what it receives (to_pod). */

#include "lib/encap.h"
#include "lib/frags.h"
#include "lib/icmp.h"
#include "lib/lb.h"
#include "lib/mtu.h"

/* Delivers into the pod on whose veth we are. */
static __always_inline int back_into_pod(struct __sk_buff *skb)
{
	return bpf_redirect_peer(skb->ifindex, 0);
}

/* A pod that a service leads to itself: it sees the hairpin address as its client. */
static __noinline int hairpin_forth(struct __sk_buff *skb, const struct cm_config *cfg,
				    struct sighting *seen, const struct translation *to)
{
	struct packet *p = seen->packet;

	if (!p || !rewrite(skb, p, DESTINATION, to->addr, to->port) ||
	    !rewrite(skb, p, SOURCE, HAIRPIN_ADDR, p->sport))
		return dropped(skb, seen, CM_DROP_FAILED);
	forwarded(skb, cfg, seen, CM_HAIRPIN);
	return back_into_pod(skb);
}

/* Its answer to the hairpin address: becomes the service's answer to the pod. */
static __noinline int hairpin_back(struct __sk_buff *skb, const struct cm_config *cfg,
				   struct sighting *seen)
{
	struct packet *p = seen->packet;
	const struct cm_ct_value *entry;
	__be32 pod, service;
	__be16 port;

	if (!p)
		return VERDICT_NEXT;
	pod = p->saddr;
	entry = is_transport(p) ? reply_find(p) : NULL;
	if (!entry)
		return VERDICT_NEXT;
	service = entry->addr.v4;
	port = entry->port;
	if (!rewrite(skb, p, DESTINATION, pod, p->dport) || !rewrite(skb, p, SOURCE, service, port))
		return dropped(skb, seen, CM_DROP_FAILED);
	forwarded(skb, cfg, seen, CM_HAIRPIN);
	return back_into_pod(skb);
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	struct packet p;
	struct sighting seen = {.point = CM_AT_FROM_POD, .packet = &p};
	const struct cm_endpoint_value *pod = NULL;
	const struct cm_ipcache_value *target;
	const struct cm_service_value *service;
	const struct cm_config *cfg;
	struct translation to;
	bool translate = false;

	if (!is_ipv4(skb))
		return VERDICT_NEXT;
	cfg = config_get();
	if (unlikely(!cfg))
		return VERDICT_NEXT;
	if (unlikely(!parse_ipv4(skb, &p))) {
		seen.packet = NULL;
		return dropped(skb, &seen, CM_DROP_MALFORMED);
	}
	fragments_resolve(&p);

	to.addr = p.daddr;
	if (is_transport(&p)) {
		if (unlikely(p.daddr == HAIRPIN_ADDR))
			return hairpin_back(skb, cfg, &seen);
		service = service_lookup(&p, 0);
		if (service) {
			pod = endpoint_lookup(p.saddr);
			if (!pod || pod->ifindex != skb->ifindex)
				return dropped(skb, &seen, CM_DROP_SPOOFED_SOURCE);
			seen.identity = pod->identity;
			if (!service_resolve(&p, service->count, &to))
				return dropped(skb, &seen, CM_DROP_NO_BACKEND);
			if (to.chosen)
				forwarded(skb, cfg, &seen, CM_SERVICE_CHOSEN);
			if (unlikely(to.hairpin))
				return hairpin_forth(skb, cfg, &seen, &to);
			translate = true;
		}
	}

	target = ipcache_lookup(to.addr);
	if (target && target->flags & CM_IPCACHE_HAS_TUNNEL)
		seen.outer = target->tunnel.v4;
	else if (target && target->flags & CM_IPCACHE_NODE && p.has_ports)
		/* Nodes are reached natively, but one that came through the tunnel is answered
		 * there. */
		seen.outer = ct_return_find(&p);

	if (!seen.outer) {
		if (translate && !rewrite(skb, &p, DESTINATION, to.addr, to.port))
			return dropped(skb, &seen, CM_DROP_FAILED);
		forwarded(skb, cfg, &seen, CM_TO_STACK);
		return VERDICT_NEXT;
	}

	if (!pod)
		pod = endpoint_lookup(p.saddr);
	if (unlikely(!pod || pod->ifindex != skb->ifindex))
		return dropped(skb, &seen, CM_DROP_SPOOFED_SOURCE);
	seen.identity = pod->identity;
	if (unlikely(wire_length(skb, &p) > cfg->tunnel_mtu && !may_fragment(&p))) {
		if (!frag_needed(skb, &p, cfg))
			return dropped(skb, &seen, CM_DROP_FAILED);
		forwarded(skb, cfg, &seen, CM_FRAG_NEEDED);
		return back_into_pod(skb);
	}
	if (translate && !rewrite(skb, &p, DESTINATION, to.addr, to.port))
		return dropped(skb, &seen, CM_DROP_FAILED);
	if (!mss_clamp(skb, &p, cfg->tunnel_mtu))
		return dropped(skb, &seen, CM_DROP_FAILED);
	return tunnel_send(skb, cfg, &seen, CM_TO_TUNNEL);
}

/* From the pod's own cluster or node; what comes out of the tunnel does not pass here. */
SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	struct packet p;
	struct sighting seen = {.point = CM_AT_TO_POD, .packet = &p};

	if (!is_ipv4(skb))
		return VERDICT_NEXT;
	if (unlikely(!parse_ipv4(skb, &p)))
		return VERDICT_NEXT; /* the pod's stack knows what to do with it */
	fragments_resolve(&p);
	if (!reply_translate(skb, &p) || (is_icmp_error(&p) && !icmp_error_translate(skb, &p)))
		return dropped(skb, &seen, CM_DROP_FAILED);
	return VERDICT_NEXT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
