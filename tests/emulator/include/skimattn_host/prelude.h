// What every kernel reads and no header of the templates takes part in; build.py compiles it once for all of them.
#pragma once
#include <stdlib.h>

#include <skimattn_host/machine.h>
#include <skimattn_host/platform.h>
