// Macros of the Metal headers that a source may test; the only shim file its preprocessing sees.
#pragma once
#define __METAL__ 1
#define __METAL_VERSION__ 310
#define __METAL_MACOS__ 1
#define __HAVE_BFLOAT__ 1
#undef __has_include
#undef __has_include_next
#undef __has_embed
