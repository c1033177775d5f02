/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Services: a pod sends to a service address, a backend gets the packet, and the answer looks as if
 * it came from the service.
 *
 * A service flow has two entries in cm_ct: one found by what the pod sends (pod → service, holding
 * the backend) and one found by what the backend answers (backend → pod, holding the service). */

#include "conntrack.h"
#include "lookup.h"
#include "rewrite.h"

/* Source address a pod sees when a service leads it back to itself (169.254.42.1): with its own
 * address it would answer within itself, past the reverse translation. */
#define HAIRPIN_ADDR bpf_htonl(0xa9fe2a01)

#define CHOICES 4 /* attempts at finding a usable slot */

struct translation {
	__be32 addr;
	__be16 port;
	bool hairpin;
	bool chosen; /* just now: the first packet of a flow */
};

static __always_inline const struct cm_service_value *service_lookup(const struct packet *p,
								     __u16 slot)
{
	struct cm_service_key key = {
	    .addr.v4 = p->daddr,
	    .port = p->dport,
	    .proto = p->proto,
	    .family = CM_FAMILY_V4,
	    .slot = slot,
	};

	return bpf_map_lookup_elem(&cm_services, &key);
}

/* What the answers of a flow from this pod to this backend are looked up by. */
static __always_inline struct cm_ct_key reply_key(const struct packet *p, __be32 addr, __be16 port)
{
	bool hairpin = addr == p->saddr;

	return ct_key(CM_CT_REPLY, addr, port, hairpin ? HAIRPIN_ADDR : p->saddr, p->sport,
		      p->proto);
}

/* The entry of another service's live flow, which this one must not overwrite. */
static __always_inline bool reply_taken(const struct cm_ct_key *key, const struct packet *p,
					__u64 now)
{
	const struct cm_ct_value *entry = bpf_map_lookup_elem(&cm_ct, key);

	return entry && (entry->addr.v4 != p->daddr || entry->port != p->dport) &&
	       !ct_closing(entry->flags) && !ct_expired(entry, p->proto, now);
}

/* Chooses at random among the active backends. Two services may share a backend, and a pod may use
 * one port towards both; then another backend is preferred, since answers could not be told apart.
 * Returns the backend's number, 0 if there is none. */
static __noinline __u32 backend_choose(const struct packet *p, __u16 count, __u64 now,
				       struct translation *to)
{
	__u32 found = 0;
	int i;

	if (!count)
		return 0;
#pragma unroll
	for (i = 0; i < CHOICES; i++) {
		const struct cm_service_value *slot =
		    service_lookup(p, bpf_get_prandom_u32() % count + 1);
		const struct cm_backend_value *backend;
		struct cm_ct_key reply;
		__u32 id;

		if (!slot)
			continue;
		id = slot->backend_id;
		backend = bpf_map_lookup_elem(&cm_backends, &id);
		if (!backend || backend->state != CM_BACKEND_ACTIVE ||
		    backend->family != CM_FAMILY_V4)
			continue;
		found = id;
		to->addr = backend->addr.v4;
		to->port = backend->port;
		reply = reply_key(p, to->addr, to->port);
		if (!reply_taken(&reply, p, now))
			break;
	}
	return found;
}

static __always_inline bool backend_exists(const struct cm_ct_value *entry)
{
	__u32 id = entry->backend_id;
	const struct cm_backend_value *backend = bpf_map_lookup_elem(&cm_backends, &id);

	return backend && backend->addr.v4 == entry->addr.v4 && backend->port == entry->port;
}

/* May this packet follow the entry, or does it begin something new? */
static __always_inline bool flow_continues(const struct cm_ct_value *entry, const struct packet *p,
					   __u64 now)
{
	if (p->proto == IPPROTO_UDP)
		return now - entry->last_seen <= CT_IDLE_UDP && backend_exists(entry);
	if (!opens_tcp(p))
		return true;
	/* A SYN sent again belongs to its first; one on a used connection opens another. */
	return !(entry->flags & CM_CT_ESTABLISHED) && now - entry->last_seen <= CT_IDLE_OPENING &&
	       backend_exists(entry);
}

static __always_inline void reply_record(const struct packet *p, const struct translation *to,
					 __u64 now)
{
	struct cm_ct_key key = reply_key(p, to->addr, to->port);
	struct cm_ct_value entry = {
	    .last_seen = now,
	    .addr.v4 = p->daddr,
	    .port = p->dport,
	    .flags = to->hairpin ? CM_CT_HAIRPIN : 0,
	};

	bpf_map_update_elem(&cm_ct, &key, &entry, BPF_ANY);
}

/* Keeps both entries of a flow alive, and notes in the reply's that the pod closed. */
static __always_inline void flow_track(struct cm_ct_value *entry, const struct packet *p,
				       const struct translation *to, __u64 now)
{
	__u16 closed = p->tcp_flags & TCP_RST	? CM_CT_RESET
		       : p->tcp_flags & TCP_FIN ? CM_CT_OPENER_FIN
						: 0;
	struct cm_ct_value *reply;
	struct cm_ct_key key;

	if (p->proto == IPPROTO_TCP && !opens_tcp(p) && !(entry->flags & CM_CT_ESTABLISHED))
		entry->flags |= CM_CT_ESTABLISHED;
	if (likely(!closed && !ct_renewal_due(entry, now)))
		return;
	entry->last_seen = now;
	key = reply_key(p, to->addr, to->port);
	reply = bpf_map_lookup_elem(&cm_ct, &key);
	if (!reply) {
		reply_record(p, to, now);
		return;
	}
	reply->last_seen = now;
	reply->flags |= closed;
}

/* Where a packet to a service goes. Changes no packet: the caller may first have to answer the pod
 * about the packet as it was. Returns false if no backend is usable. */
static __noinline int service_resolve(const struct packet *p, __u16 count, struct translation *to)
{
	struct cm_ct_key key =
	    ct_key(CM_CT_SERVICE, p->saddr, p->sport, p->daddr, p->dport, p->proto);
	struct cm_ct_value *entry = bpf_map_lookup_elem(&cm_ct, &key);
	__u64 now = bpf_ktime_get_ns();

	if (entry && flow_continues(entry, p, now)) {
		to->addr = entry->addr.v4;
		to->port = entry->port;
		to->hairpin = entry->flags & CM_CT_HAIRPIN;
		to->chosen = false;
		flow_track(entry, p, to, now);
		return true;
	}

	struct cm_ct_value fresh = {.last_seen = now};

	fresh.backend_id = backend_choose(p, count, now, to);
	if (!fresh.backend_id) {
		if (entry)
			bpf_map_delete_elem(&cm_ct, &key);
		return false;
	}
	to->hairpin = to->addr == p->saddr;
	to->chosen = true;
	fresh.addr.v4 = to->addr;
	fresh.port = to->port;
	fresh.flags = (to->hairpin ? CM_CT_HAIRPIN : 0) |
		      (p->proto == IPPROTO_TCP && !opens_tcp(p) ? CM_CT_ESTABLISHED : 0);
	reply_record(p, to, now);
	bpf_map_update_elem(&cm_ct, &key, &fresh, BPF_ANY);
	return true;
}

/* The entry by which a backend's answer is recognised, renewed; NULL if this is no such answer. */
static __always_inline const struct cm_ct_value *reply_find(const struct packet *p)
{
	struct cm_ct_key key =
	    ct_key(CM_CT_REPLY, p->saddr, p->sport, p->daddr, p->dport, p->proto);
	struct cm_ct_value *entry = bpf_map_lookup_elem(&cm_ct, &key);
	__u64 now;

	if (likely(!entry))
		return NULL;
	now = bpf_ktime_get_ns();
	/* A connection accepted on a tuple whose service flow has ended was opened to the backend
	 * directly. */
	if (ct_expired(entry, p->proto, now) ||
	    (ct_closing(entry->flags) &&
	     (p->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK))) {
		bpf_map_delete_elem(&cm_ct, &key);
		return NULL;
	}
	if (ct_renewal_due(entry, now))
		entry->last_seen = now;
	if (p->tcp_flags & TCP_RST)
		entry->flags |= CM_CT_RESET;
	else if (p->tcp_flags & TCP_FIN)
		entry->flags |= CM_CT_ANSWERER_FIN;
	return entry;
}

/* Makes a backend's answer come from the service. Returns false if the kernel refused. */
static __always_inline bool reply_translate(struct __sk_buff *skb, struct packet *p)
{
	const struct cm_ct_value *entry;

	if (!is_transport(p))
		return true;
	entry = reply_find(p);
	return likely(!entry) || rewrite(skb, p, SOURCE, entry->addr.v4, entry->port);
}
