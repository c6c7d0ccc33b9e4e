/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Not NetBSD's: written for the check of the glue.
 */

#include <kernel.h>
