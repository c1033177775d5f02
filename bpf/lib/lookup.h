/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Who an IPv4 address is: in the ipcache, among the local endpoints, among the peers' nodes. */

#include "maps.h"

#define IDENTITY_WORLD		2
#define IDENTITY_REMOTE_NODE	6
#define IDENTITY_WORLD_IPV4	9 /* what dual-stack nodes call IPv4's part of the world */
#define IDENTITY_RESERVED_LIMIT 256

static __always_inline const struct cm_ipcache_value *ipcache_lookup(__be32 addr)
{
	struct cm_ipcache_key key = {
	    .prefixlen = CM_IPCACHE_PREFIX_BASE + 32,
	    .family = CM_FAMILY_V4,
	    .addr.v4 = addr,
	};

	return bpf_map_lookup_elem(&cm_ipcache, &key);
}

static __always_inline const struct cm_endpoint_value *endpoint_lookup(__be32 addr)
{
	struct cm_endpoint_key key = {
	    .addr.v4 = addr,
	    .family = CM_FAMILY_V4,
	};

	return bpf_map_lookup_elem(&cm_endpoints, &key);
}

static __always_inline const struct cm_node_value *node_lookup(__be32 addr)
{
	struct cm_node_key key = {
	    .addr.v4 = addr,
	    .family = CM_FAMILY_V4,
	};

	return bpf_map_lookup_elem(&cm_nodes, &key);
}

static __always_inline bool is_host(const struct cm_endpoint_value *endpoint)
{
	return endpoint->flags & CM_ENDPOINT_HOST;
}
