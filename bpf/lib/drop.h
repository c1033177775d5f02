/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Numbered fates of a packet: what user space sees in cm_metrics and cm_events.
 * Mirrored by nodeagent/datapath/abi.py; a test compares the two through BTF. Numbers never change
 * their meaning; new ones are appended. */

enum cm_code {
	/* Forwarded. */
	CM_TO_STACK = 1, /* handed on to the CNI or the node's own stack */
	CM_TO_TUNNEL = 2,
	CM_TO_POD = 3,	    /* out of the tunnel into a local pod */
	CM_TO_NODE = 4,	    /* out of the tunnel to the node's own address */
	CM_HAIRPIN = 5,	    /* a pod that reached itself through a service */
	CM_FRAG_NEEDED = 6, /* answered with ICMP "fragmentation needed" */
	CM_PROBE_ANSWERED = 7,
	CM_PROBE_RETURNED = 8,
	CM_SERVICE_CHOSEN = 9, /* a backend was chosen for a new flow */
	CM_EVENT_LOST = 10,    /* the event ring was full */

	/* Dropped. */
	CM_DROP_FIRST = 128,
	CM_DROP_MALFORMED = 128,	/* headers cut short or inconsistent */
	CM_DROP_UNSUPPORTED = 129,	/* a protocol that the tunnel does not carry */
	CM_DROP_SPOOFED_SOURCE = 130,	/* a pod used an address that is not its own */
	CM_DROP_NO_BACKEND = 131,	/* service without a usable backend */
	CM_DROP_NO_TUNNEL_KEY = 132,	/* arrived on the tunnel device without tunnel metadata */
	CM_DROP_UNKNOWN_NODE = 133,	/* outer source is not a node of any peer */
	CM_DROP_FOREIGN_IDENTITY = 134, /* identity does not belong to the sender's cluster */
	CM_DROP_UNKNOWN_SOURCE = 135,	/* inner source not announced, or behind another node */
	CM_DROP_NO_ENDPOINT = 136,	/* inner destination is neither a local pod nor this node */
	CM_DROP_NO_ROUTE = 137,		/* node's own packet to an address behind no tunnel */
	CM_DROP_FAILED = 139,		/* a kernel helper refused */
	CM_DROP_NOT_CONFIGURED = 140,	/* the agent has not configured this node yet */
	CM_DROP_UNEXPECTED_PROBE = 141, /* a probe from an address that is not the sender's */
	CM_CODES = 256,
};

enum cm_direction {
	CM_EGRESS = 0,	/* leaving this node's pods or the node itself */
	CM_INGRESS = 1, /* arriving at them */
	CM_DIRECTIONS = 2,
};
