/* Choosing next tokens: the likeliest, or by temperature among the likeliest k or those that hold a share p. */
#include "sample.h"

#include <math.h>

/* SplitMix64 (Steele, Lea & Flood 2014), its finaliser used as a hash of the three numbers. */
static uint64_t mix(uint64_t z) {
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

double clew_uniform(uint64_t seed, uint64_t stream, uint64_t step) {
  return (double)(mix(mix(mix(seed) ^ stream) ^ step) >> 11) * 0x1p-53;
}

typedef struct clew_choice {
  double x; /* logit */
  int32_t id;
} clew_choice;

/* Is a likelier than b? The lower id wins ties. */
static bool before(clew_choice a, clew_choice b) { return a.x > b.x || (a.x == b.x && a.id < b.id); }

/* Restores the heap (the likeliest on top) below i. heap: [n] */
static void sift(clew_choice *heap, size_t i, size_t n) {
  for (;;) {
    size_t best = i;
    for (size_t child = 2 * i + 1; child <= 2 * i + 2 && child < n; child++) {
      if (before(heap[child], heap[best])) {
        best = child;
      }
    }
    if (best == i) {
      return;
    }
    const clew_choice held = heap[i];
    heap[i] = heap[best], heap[best] = held;
    i = best;
  }
}

static double logit(const void *logits, clew_dtype dtype, size_t i) {
  return dtype == CLEW_FLOAT32 ? (double)((const float *)logits)[i] : ((const double *)logits)[i];
}

/* choices: [n] scratch, its first entries the likeliest in order afterwards. Gives how many are eligible. */
static size_t eligible(clew_choice *choices, size_t n, double most, const clew_sampling *how) {
  size_t limit = how->top_k > 0 && how->top_k < n ? how->top_k : n;
  if (limit == n && how->top_p >= 1) {
    return n;
  }
  double total = 0;
  for (size_t i = 0; i < n; i++) {
    total += exp((choices[i].x - most) / how->temperature);
  }
  for (size_t i = n / 2; i-- > 0;) {
    sift(choices, i, n);
  }
  if (limit < n) { /* p is a share of what k leaves */
    total = 0;
  }
  size_t taken = 0, left = n;
  double mass = 0;
  while (taken < limit) { /* the top of the heap goes behind its end: the likeliest end up last, in reverse */
    const clew_choice top = choices[0];
    choices[0] = choices[--left];
    choices[left] = top;
    sift(choices, 0, left);
    taken++;
    mass += exp((top.x - most) / how->temperature);
    if (limit == n && mass >= how->top_p * total) {
      break;
    }
  }
  for (size_t i = 0; i < taken && i < n - 1 - i; i++) { /* the reverse of all brings them to the front in order */
    const clew_choice held = choices[i];
    choices[i] = choices[n - 1 - i], choices[n - 1 - i] = held;
  }
  if (limit < n && how->top_p < 1) {
    double share = 0;
    for (size_t i = 0; i < taken; i++) {
      share += exp((choices[i].x - most) / how->temperature);
      if (share >= how->top_p * mass) {
        return i + 1;
      }
    }
  }
  return taken;
}

clew_status clew_sample(int32_t *ids, double *log_probs, const void *logits, clew_dtype dtype, size_t n_rows, size_t n,
                        const clew_sampling *how, const int64_t *streams, const int64_t *steps, clew_error *err) {
  clew_choice *choices = NULL;
  if (n == 0 || n > INT32_MAX || !(how->temperature >= 0) || !(how->top_p > 0)) {
    return clew_fail(err, CLEW_ERROR_VALUE, "sampling from %zu logits, temperature %g, top_p %g", n, how->temperature,
                     how->top_p);
  }
  if (how->temperature > 0) {
    choices = clew_alloc(n, sizeof *choices);
    if (choices == NULL) {
      return clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for %zu choices", n);
    }
  }
  clew_status status = CLEW_OK;
  for (size_t row = 0; row < n_rows && status == CLEW_OK; row++) {
    size_t best = 0;
    double most = -INFINITY, total = 0;
    bool broken = false;
    for (size_t i = 0; i < n; i++) {
      const double x = logit(logits, dtype, row * n + i);
      broken = broken || isnan(x) || x == INFINITY;
      if (x > most) {
        most = x, best = i;
      }
    }
    if (broken || most == -INFINITY) {
      status =
          clew_fail(err, CLEW_ERROR_VALUE, "the logits of sequence %lld hold NaN or infinity: no token can be chosen",
                    (long long)streams[row]);
      break;
    }
    for (size_t i = 0; i < n; i++) {
      total += exp(logit(logits, dtype, row * n + i) - most);
    }
    if (how->temperature > 0) {
      for (size_t i = 0; i < n; i++) {
        choices[i] = (clew_choice){logit(logits, dtype, row * n + i), (int32_t)i};
      }
      const size_t kept = eligible(choices, n, most, how);
      double mass = 0, sum = 0;
      for (size_t i = 0; i < kept; i++) {
        mass += exp((choices[i].x - most) / how->temperature);
      }
      const double place = clew_uniform(how->seed, (uint64_t)streams[row], (uint64_t)steps[row]) * mass;
      best = (size_t)choices[0].id;
      for (size_t i = 0; i < kept; i++) {
        const double p = exp((choices[i].x - most) / how->temperature);
        if (p > 0) { /* rounding of the last sums must not choose what is impossible */
          best = (size_t)choices[i].id;
        }
        sum += p;
        if (sum > place) {
          break;
        }
      }
    }
    ids[row] = (int32_t)best;
    log_probs[row] = logit(logits, dtype, row * n + best) - most - log(total);
  }
  clew_free(choices);
  return status;
}
