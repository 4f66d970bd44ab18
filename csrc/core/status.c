/* Errors, and the tables that sites.def and weights.def spell out. */
#include <stdarg.h>
#include <stdio.h>

#include "clew.h"

clew_status clew_fail(clew_error *err, clew_status status, const char *format, ...) {
  if (err) {
    va_list arguments;
    err->status = status;
    va_start(arguments, format);
    vsnprintf(err->message, sizeof err->message, format, arguments); /* a longer message is cut */
    va_end(arguments);
  }
  return status;
}

#define SITE(id, name, axes, meaning) {#id, name, axes, meaning, false},
#define LAYER_SITE(id, name, axes, meaning) {#id, name, axes, meaning, true},
const clew_site_info clew_sites[CLEW_N_SITES] = {
#include "sites.def"
};
#undef SITE
#undef LAYER_SITE

#define WEIGHT(id, name, axes) {name, axes, false},
#define LAYER_WEIGHT(id, name, axes) {name, axes, true},
const clew_weight_info clew_weights[CLEW_N_WEIGHTS] = {
#include "weights.def"
};
#undef WEIGHT
#undef LAYER_WEIGHT
