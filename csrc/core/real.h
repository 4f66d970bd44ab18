/* One source, two precisions: a numeric file is compiled once with -DREAL=float and once with -DREAL=double.
 * R(name) is name_f32 or name_f64. */
#ifndef CLEW_REAL_H
#define CLEW_REAL_H

#define CLEW_PASTE_(a, b) a##b
#define CLEW_PASTE(a, b) CLEW_PASTE_(a, b)
#define CLEW_SUFFIX_float _f32
#define CLEW_SUFFIX_double _f64

#ifdef REAL
typedef REAL real;
#define R(name) CLEW_PASTE(name, CLEW_PASTE(CLEW_SUFFIX_, REAL))
#endif

#endif
