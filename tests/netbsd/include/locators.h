/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Not config(1)'s: written for the check of the glue.
 */

#define	XENBUSCF_ID		0
#define	XENBUSCF_ID_DEFAULT	(-1)
