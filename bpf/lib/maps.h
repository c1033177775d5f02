/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The ABI between the programs and the node agent: every map and the structs in it.
 *
 * Mirrored by nodeagent/datapath/abi.py; a test compares names, sizes and offsets through BTF.
 * Addresses are 16 bytes, an IPv4 address in the first four in network order and the rest zero;
 * ports are in network order; everything else is native. No struct has implicit padding. */

#include "common.h"
#include "drop.h"

#define CM_FAMILY_V4 1
#define CM_FAMILY_V6 2

/* No union: to initialise one of its members leaves the bytes of the others undefined. */
struct cm_addr {
	__be32 v4;
	__be32 v6_rest[3];
};

/* --- ipcache: who an address is and how it is reached ------------------------------------------
 */

enum cm_ipcache_flag {
	CM_IPCACHE_HAS_TUNNEL = 1 << 1,
	CM_IPCACHE_REMOTE_CLUSTER = 1 << 3,
	CM_IPCACHE_NODE = 1 << 4, /* a node's own address */
	CM_IPCACHE_CIDR = 1 << 5, /* fallback for a pod CIDR */
};

struct cm_ipcache_key {
	__u32 prefixlen; /* CM_IPCACHE_PREFIX_BASE + address bits */
	__u16 cluster_id;
	__u8 pad;
	__u8 family;
	struct cm_addr addr;
};

#define CM_IPCACHE_PREFIX_BASE 32

struct cm_ipcache_value {
	__u32 identity;
	struct cm_addr tunnel;
	__u16 cluster_id; /* owner, for pruning */
	__u8 key;
	__u8 flags;
};

/* --- endpoints: local pods and the node's own addresses ----------------------------------------
 */

struct cm_endpoint_key {
	struct cm_addr addr;
	__u8 family;
	__u8 pad[3];
};

enum cm_endpoint_flag {
	CM_ENDPOINT_HOST = 1 << 0, /* this node's own address */
};

struct cm_endpoint_value {
	__u32 ifindex; /* host side of the pod's veth */
	__u32 identity;
	__u32 flags;
	__u8 mac[6];
	__u8 pad[2];
};

/* --- nodes: outer addresses of the peers' nodes ------------------------------------------------
 */

struct cm_node_key {
	struct cm_addr addr;
	__u8 family;
	__u8 pad[3];
};

struct cm_node_value {
	__u32 cluster_id;
	__u32 flags;
};

/* --- services and backends ---------------------------------------------------------------------
 */

struct cm_service_key {
	struct cm_addr addr;
	__be16 port;
	__u8 proto;
	__u8 family;
	__u16 slot; /* 0 = the service itself, 1..count = its backends */
	__u16 pad;
};

struct cm_service_value {
	__u32 backend_id; /* slot 0: 0 */
	__u16 count;	  /* slot 0: number of backends */
	__u16 flags;
	__u32 service_id;
	__u32 pad;
};

enum cm_backend_state {
	CM_BACKEND_ACTIVE = 0,
	CM_BACKEND_DRAINING = 1, /* keeps its connections, gets no new ones */
};

struct cm_backend_value {
	struct cm_addr addr;
	__be16 port;
	__u8 proto;
	__u8 family;
	__u16 cluster_id;
	__u8 state;
	__u8 pad;
};

/* --- connection tracking, kept by the programs alone -------------------------------------------
 */

enum cm_ct_kind {
	CM_CT_SERVICE = 1, /* pod → service address, value = the chosen backend */
	CM_CT_REPLY = 2,   /* backend → pod, value = the service address to show the pod */
	CM_CT_RETURN = 3,  /* pod → remote node, value = the tunnel endpoint the flow came from */
};

struct cm_ct_key {
	struct cm_addr saddr;
	struct cm_addr daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 family;
	__u8 kind;
	__u8 pad;
};

enum cm_ct_flag {
	CM_CT_ESTABLISHED = 1 << 0,  /* service entry: the opener sent more than its SYN */
	CM_CT_HAIRPIN = 1 << 1,	     /* the backend is the pod itself */
	CM_CT_OPENER_FIN = 1 << 2,   /* reply entry: the pod closed its side */
	CM_CT_ANSWERER_FIN = 1 << 3, /* reply entry: the backend closed its side */
	CM_CT_RESET = 1 << 4,	     /* reply entry: either side sent RST */
};

struct cm_ct_value {
	__u64 last_seen; /* ns, CLOCK_MONOTONIC; renewed at most once a second */
	struct cm_addr addr;
	__be16 port;
	__u16 flags;
	__u32 backend_id;
};

/* Ports of a datagram, remembered from its first fragment for those that follow. */
struct cm_fragment_key {
	struct cm_addr saddr;
	struct cm_addr daddr;
	__u32 id;
	__u8 proto;
	__u8 family;
	__u8 pad[2];
};

struct cm_fragment_value {
	__be16 sport;
	__be16 dport;
};

/* --- what the agent reads ----------------------------------------------------------------------
 */

struct cm_metric {
	__u64 packets;
	__u64 bytes;
};

struct cm_probe_key {
	struct cm_addr addr;
	__u8 family;
	__u8 pad[3];
};

struct cm_probe_value {
	__u64 sent; /* ns, CLOCK_MONOTONIC of this node */
	__u64 received;
	__u32 seq;
	__u32 rtt_us;
};

enum cm_event_type {
	CM_EVENT_DROP = 1,
	CM_EVENT_TRACE = 2,
};

enum cm_point {
	CM_AT_FROM_POD = 1,
	CM_AT_TO_POD = 2,
	CM_AT_FROM_TUNNEL = 3,
	CM_AT_TO_TUNNEL = 4,
};

struct cm_event {
	__u64 time; /* ns, CLOCK_MONOTONIC */
	__u8 type;
	__u8 code; /* enum cm_code */
	__u8 point;
	__u8 family;
	__u32 ifindex;
	__u32 identity; /* of the sender, as known at this point */
	__u32 length;	/* of the packet, headers included */
	struct cm_addr source;
	struct cm_addr destination;
	struct cm_addr outer; /* tunnel endpoint: sender on arrival, receiver on departure */
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
};

/* --- configuration -----------------------------------------------------------------------------
 */

enum cm_config_flag {
	CM_CONFIG_TRACE = 1 << 0,
};

struct cm_config {
	__u32 cluster_id; /* 0 = not configured yet */
	__u32 tunnel_ifindex;
	__u32 tunnel_mtu; /* largest inner IP packet */
	__u32 identity_shift;
	__u32 flags;
	struct cm_addr node_ip;
	__u32 host_identity;
};

/* Keeps in BTF what no map names; the loader passes over the section. */
const union {
	enum cm_code code;
	enum cm_direction direction;
	enum cm_ipcache_flag ipcache_flag;
	enum cm_endpoint_flag endpoint_flag;
	enum cm_backend_state backend_state;
	enum cm_ct_kind ct_kind;
	enum cm_ct_flag ct_flag;
	enum cm_event_type event_type;
	enum cm_point point;
	enum cm_config_flag config_flag;
	struct cm_event event;
} cm_abi SEC(".abi") = {};

/* --- the maps ----------------------------------------------------------------------------------
 */

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 512000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cm_ipcache_key);
	__type(value, struct cm_ipcache_value);
} cm_ipcache SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65535);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cm_endpoint_key);
	__type(value, struct cm_endpoint_value);
} cm_endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65535);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cm_node_key);
	__type(value, struct cm_node_value);
} cm_nodes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cm_service_key);
	__type(value, struct cm_service_value);
} cm_services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct cm_backend_value);
} cm_backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, struct cm_ct_key);
	__type(value, struct cm_ct_value);
} cm_ct SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct cm_fragment_key);
	__type(value, struct cm_fragment_value);
} cm_fragments SEC(".maps");

/* Index: code * CM_DIRECTIONS + direction. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CM_CODES *CM_DIRECTIONS);
	__type(key, __u32);
	__type(value, struct cm_metric);
} cm_metrics SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65535);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cm_probe_key);
	__type(value, struct cm_probe_value);
} cm_probes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} cm_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cm_config);
} cm_config SEC(".maps");
