#include "libcore/backend.h"
