/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What every other header needs: kernel types, helper prototypes, byte order. */

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

/* Verdicts. The numbers mean the same to TCX and to a clsact filter in direct-action mode, except
 * that clsact's TC_ACT_UNSPEC is what lets the next filter run: TCX_NEXT has the same value. */
#define VERDICT_NEXT (-1)
#define VERDICT_DROP TC_ACT_SHOT

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define NS_PER_US  1000ULL
#define NS_PER_SEC 1000000000ULL
