/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Flows that the programs must remember: those to services (both directions) and those that a
 * remote node opened through the tunnel. Nothing else is tracked.
 *
 * TCP segments that open nothing follow their entry however old it is: any other choice would only
 * break the connection. Ages decide when a tuple may mean something new. */

#include "maps.h"
#include "parse.h"

#define CT_IDLE_TCP	(6 * 3600 * NS_PER_SEC)
#define CT_IDLE_OPENING (60 * NS_PER_SEC)
#define CT_IDLE_UDP	(60 * NS_PER_SEC)
#define CT_IDLE_CLOSING (10 * NS_PER_SEC)
#define CT_RENEW_AFTER	NS_PER_SEC

static __always_inline struct cm_ct_key ct_key(enum cm_ct_kind kind, __be32 saddr, __be16 sport,
					       __be32 daddr, __be16 dport, __u8 proto)
{
	struct cm_ct_key key = {
	    .saddr.v4 = saddr,
	    .daddr.v4 = daddr,
	    .sport = sport,
	    .dport = dport,
	    .proto = proto,
	    .family = CM_FAMILY_V4,
	    .kind = kind,
	};

	return key;
}

static __always_inline bool ct_closing(__u16 flags)
{
	const __u16 both = CM_CT_OPENER_FIN | CM_CT_ANSWERER_FIN;

	return (flags & CM_CT_RESET) || (flags & both) == both;
}

/* For reply and return entries. */
static __always_inline bool ct_expired(const struct cm_ct_value *entry, __u8 proto, __u64 now)
{
	__u64 idle = proto != IPPROTO_TCP	? CT_IDLE_UDP
		     : ct_closing(entry->flags) ? CT_IDLE_CLOSING
						: CT_IDLE_TCP;

	return now - entry->last_seen > idle;
}

static __always_inline bool ct_renewal_due(const struct cm_ct_value *entry, __u64 now)
{
	return now - entry->last_seen > CT_RENEW_AFTER;
}

/* --- what a remote node opened -----------------------------------------------------------------
 */

/* Arriving: the answer to this flow must go back to `outer`. */
static __always_inline void ct_return_record(const struct packet *p, __be32 outer)
{
	struct cm_ct_key key =
	    ct_key(CM_CT_RETURN, p->daddr, p->dport, p->saddr, p->sport, p->proto);
	const struct cm_ct_value *known;
	__u64 now = bpf_ktime_get_ns();
	struct cm_ct_value entry = {.last_seen = now, .addr.v4 = outer};

	known = bpf_map_lookup_elem(&cm_ct, &key);
	if (known && known->addr.v4 == outer && !ct_renewal_due(known, now))
		return;
	bpf_map_update_elem(&cm_ct, &key, &entry, BPF_ANY);
}

/* Leaving: the tunnel endpoint that the flow came from, or 0. */
static __always_inline __be32 ct_return_find(const struct packet *p)
{
	struct cm_ct_key key =
	    ct_key(CM_CT_RETURN, p->saddr, p->sport, p->daddr, p->dport, p->proto);
	const struct cm_ct_value *entry = bpf_map_lookup_elem(&cm_ct, &key);

	if (!entry || ct_expired(entry, p->proto, bpf_ktime_get_ns()))
		return 0;
	return entry->addr.v4;
}
