/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Not config(1)'s: the check of the glue gives its options by -D.
 */
