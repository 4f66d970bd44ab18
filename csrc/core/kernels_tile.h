/* The height of a tile of a product; for kernels_gemm.c and kernels_packed.c. */
#ifndef CLEW_KERNELS_TILE_H
#define CLEW_KERNELS_TILE_H

#include "kernels_internal.h"

/* Rows of a product's tile, two registers wide: as many as leave registers for two of b and one of a. EACH_HEIGHT is
 * the body of a switch over them, whose cases TILE(rows) defines: so the number of rows becomes a constant. */
#define FOUR_HEIGHTS(TILE)                                                                                             \
  TILE(1);                                                                                                             \
  TILE(2);                                                                                                             \
  TILE(3);                                                                                                             \
  TILE(4);
#define SIX_HEIGHTS(TILE)                                                                                              \
  FOUR_HEIGHTS(TILE)                                                                                                   \
  TILE(5);                                                                                                             \
  TILE(6);
#if VEC_BYTES == 64
#define TILE_ROWS 14
#define EACH_HEIGHT(TILE)                                                                                              \
  SIX_HEIGHTS(TILE)                                                                                                    \
  TILE(7);                                                                                                             \
  TILE(8);                                                                                                             \
  TILE(9);                                                                                                             \
  TILE(10);                                                                                                            \
  TILE(11);                                                                                                            \
  TILE(12);                                                                                                            \
  TILE(13);                                                                                                            \
  TILE(14);
#else
#define TILE_ROWS 6
#define EACH_HEIGHT(TILE) SIX_HEIGHTS(TILE)
#endif

#endif
