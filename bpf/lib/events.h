/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Counting what happens to packets, and telling user space about it. */

#include "config.h"
#include "parse.h"

/* One packet's way through one program: what is said about it when it is counted or dropped. */
struct sighting {
	enum cm_point point;
	__u32 identity;
	__be32 outer;
	struct packet *packet; /* NULL if it could not be parsed */
};

static __always_inline enum cm_direction direction_at(enum cm_point point)
{
	return point == CM_AT_FROM_POD || point == CM_AT_TO_TUNNEL ? CM_EGRESS : CM_INGRESS;
}

static __always_inline void count(const struct __sk_buff *skb, enum cm_point point,
				  enum cm_code code)
{
	__u32 index = (__u32)code * CM_DIRECTIONS + direction_at(point);
	struct cm_metric *metric = bpf_map_lookup_elem(&cm_metrics, &index);

	if (metric) {
		metric->packets += 1;
		metric->bytes += skb->len;
	}
}

static __noinline int emit(const struct __sk_buff *skb, const struct sighting *seen,
			   enum cm_event_type type, enum cm_code code)
{
	struct cm_event *event;
	const struct packet *p;

	/* User space reads in its own time: waking it for every packet would cost the packet. The
	 * kernel wakes it whenever it had read everything. */
	event = bpf_ringbuf_reserve(&cm_events, sizeof(*event), 0);
	if (!event) {
		count(skb, seen->point, CM_EVENT_LOST);
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_ns();
	event->type = type;
	event->code = code;
	event->point = seen->point;
	event->ifindex = skb->ifindex;
	event->identity = seen->identity;
	event->length = skb->len;
	event->outer.v4 = seen->outer;
	p = seen->packet;
	if (p) {
		event->family = CM_FAMILY_V4;
		event->source.v4 = p->saddr;
		event->destination.v4 = p->daddr;
		event->sport = p->sport;
		event->dport = p->dport;
		event->proto = p->proto;
	}
	bpf_ringbuf_submit(event, 0);
	return 0;
}

static __always_inline int dropped(const struct __sk_buff *skb, const struct sighting *seen,
				   enum cm_code reason)
{
	count(skb, seen->point, reason);
	emit(skb, seen, CM_EVENT_DROP, reason);
	return VERDICT_DROP;
}

static __always_inline void forwarded(const struct __sk_buff *skb, const struct cm_config *cfg,
				      const struct sighting *seen, enum cm_code code)
{
	count(skb, seen->point, code);
	if (unlikely(cfg->flags & CM_CONFIG_TRACE))
		emit(skb, seen, CM_EVENT_TRACE, code);
}
