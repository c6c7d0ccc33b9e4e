/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What config(1) writes for a kernel that has xencons(4).
 */

#include <kernel.h>

#include "port.h"

extern const struct cfattach xencons_ca;
extern struct cfdriver xencons_cd;
struct cfdriver xencons_cd = { "xencons" };

void
host_conf_xencons(void)
{

	host_driver(&xencons_ca, &xencons_cd, "xencons");
}
