/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Only a datagram's first fragment carries ports; they are remembered for those that follow. */

#include "maps.h"
#include "parse.h"

static __noinline int fragments_remember(struct packet *p)
{
	struct cm_fragment_key key = {
	    .saddr.v4 = p->saddr,
	    .daddr.v4 = p->daddr,
	    .id = p->id,
	    .proto = p->proto,
	    .family = CM_FAMILY_V4,
	};

	if (is_later_fragment(p)) {
		const struct cm_fragment_value *ports = bpf_map_lookup_elem(&cm_fragments, &key);

		if (ports) {
			p->sport = ports->sport;
			p->dport = ports->dport;
			p->has_ports = true;
		}
	} else if (p->has_ports) {
		struct cm_fragment_value ports = {.sport = p->sport, .dport = p->dport};

		bpf_map_update_elem(&cm_fragments, &key, &ports, BPF_ANY);
	}
	return 0;
}

static __always_inline void fragments_resolve(struct packet *p)
{
	if (unlikely(is_fragment(p)))
		fragments_remember(p);
}
