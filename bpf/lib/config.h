/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the agent told this node. */

#include "maps.h"

/* NULL until the agent has configured the node. */
static __always_inline const struct cm_config *config_get(void)
{
	__u32 zero = 0;
	const struct cm_config *cfg = bpf_map_lookup_elem(&cm_config, &zero);

	return cfg && cfg->cluster_id ? cfg : NULL;
}
