/* The dynamic programme over a restricted set of actions, in double precision.
 *
 * The state after some messages is the posterior over the prior's centres and the directions that were seen. A layer
 * takes a batch of posteriors that share their directions, tries every set of actions and keeps the least value of each
 * posterior. The last message is summed without keeping posteriors: a variance is a sum over pairs of centres. */
#include "adaptive.h"

#include <math.h>
#include <string.h>

#define NEGLIGIBLE 1e-8 /* probability of a message, or of a centre, that is left out */

typedef struct level {
  double *like;      /* [points, grid] density times grid step of a message from each centre */
  double *posterior; /* [batch, points] */
  double *weight;    /* [batch] probability of the message that led here */
  double *value;     /* [batch] */
  size_t *parent;    /* [batch] */
} level;

typedef struct state {
  const clew_programme *p;
  size_t messages, grid; /* messages in all; the longest grid */
  double deviation;      /* of a message from a centre: √(noise² + spread) */
  double *seen;          /* [messages, dim] orthonormal */
  double *offsets;       /* [points, dim] centres as the end sees them */
  double *squares;       /* [points, points] their squared distances, lower half */
  double *means;         /* [points] of the newest message, in deviations */
  size_t *kept;          /* [points] centres that are still likely */
  double *least;         /* [layers, most] what a set of actions is worth, for each posterior */
  size_t most;           /* posteriors in the largest batch */
  double *few;           /* [points, grid], then [points, points] */
  level *levels;         /* [messages + 1] */
  clew_cancel *cancel;   /* NULL on workers */
} state;

static double dot(const double *x, const double *y, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++)
    sum += x[i] * y[i];
  return sum;
}

/* The part of an action orthogonal to what was seen, of unit length, as row t of `seen`; false when there is none. */
static bool innovation(state *s, size_t t, size_t action) {
  const size_t d = s->p->dim;
  double *q = s->seen + t * d;
  memcpy(q, s->p->directions + action * d, d * sizeof *q);
  for (int twice = 0; twice < 2; twice++) {
    for (size_t b = 0; b < t; b++) {
      const double along = dot(q, s->seen + b * d, d);
      for (size_t j = 0; j < d; j++)
        q[j] -= along * s->seen[b * d + j];
    }
  }
  const double length = sqrt(dot(q, q, d));
  if (length < 1e-9)
    return false;
  for (size_t j = 0; j < d; j++)
    q[j] /= length;
  return true;
}

/* The grid is symmetric about 0: (j + ½) · spacing for j = −half … half − 1. */
static size_t half_grid(const clew_programme *p, double farthest, double deviation) {
  return (size_t)ceil((farthest + p->reach * deviation) / (p->step * deviation));
}

/* Fills the likelihoods of message t along its direction; the number of grid points. */
static size_t tabulate(const state *s, size_t t) {
  const clew_programme *p = s->p;
  const double *q = s->seen + t * p->dim;
  double *like = s->levels[t].like, farthest = 0;
  for (size_t i = 0; i < p->points; i++)
    farthest = fmax(farthest, fabs(dot(q, p->centres + i * p->dim, p->dim)));
  const size_t half = half_grid(p, farthest, s->deviation), n = 2 * half;
  for (size_t i = 0; i < p->points; i++) {
    const double mean = s->means[i] = dot(q, p->centres + i * p->dim, p->dim) / s->deviation;
    for (size_t j = 0; j < n; j++) {
      const double z = ((double)j - (double)half + 0.5) * p->step - mean;
      like[i * s->grid + j] = -0.5 * z * z;
    }
    clew_get_kernels_f64()->vexp(like + i * s->grid, like + i * s->grid, n);
    for (size_t j = 0; j < n; j++)
      like[i * s->grid + j] *= p->step * 0.39894228040143267794;
  }
  return n;
}

/* Variance that is left within a centre's Gaussian, whatever the messages are. */
static double within(const state *s, size_t t) {
  const double spread = s->p->spread;
  return (double)s->p->dim * spread - (double)t * spread * spread / (s->deviation * s->deviation);
}

/* offsets = the centres' means of w given t messages, up to what all have in common: (1 − κ Q Qᵀ) μ. */
static void offset_centres(const state *s, size_t t) {
  const clew_programme *p = s->p;
  const size_t d = p->dim;
  const double kappa = p->spread / (s->deviation * s->deviation);
  memcpy(s->offsets, p->centres, p->points * d * sizeof(double));
  for (size_t i = 0; i < p->points && kappa > 0; i++)
    for (size_t b = 0; b < t; b++) {
      const double along = kappa * dot(s->seen + b * d, p->centres + i * d, d);
      for (size_t j = 0; j < d; j++)
        s->offsets[i * d + j] -= along * s->seen[b * d + j];
    }
}

/* squares = squared distances of the offset centres. */
static void measure_distances(const state *s) {
  const size_t points = s->p->points, d = s->p->dim;
  for (size_t i = 0; i < points; i++)
    for (size_t l = 0; l < i; l++) {
      double sum = 0;
      for (size_t j = 0; j < d; j++) {
        const double difference = s->offsets[i * d + j] - s->offsets[l * d + j];
        sum += difference * difference;
      }
      s->squares[i * points + l] = sum;
    }
}

/* The variance expected after the last message. Only centres that are still likely are summed over, and only grid
 * points near them. */
static double expect_last(const state *s, const double *posterior, size_t t, size_t n) {
  const clew_programme *p = s->p;
  const size_t points = p->points;
  const double *like = s->levels[t].like, *means = s->means;
  double *joint = s->few, *squares = joint + points * s->grid;
  double low = INFINITY, high = -INFINITY;
  size_t kept = 0;
  for (size_t i = 0; i < points; i++) {
    if (posterior[i] < NEGLIGIBLE)
      continue;
    low = fmin(low, means[i]), high = fmax(high, means[i]);
    s->kept[kept++] = i;
  }
  if (kept < 2)
    return within(s, t + 1);
  const double middle = (double)n / 2;
  const double from = floor((low - p->reach) / p->step + middle), to = ceil((high + p->reach) / p->step + middle);
  const size_t first = from > 0 ? (size_t)from : 0, last = to < (double)n ? (size_t)to : n;
  for (size_t a = 0; a < kept; a++) {
    const size_t i = s->kept[a];
    for (size_t j = first; j < last; j++)
      joint[a * s->grid + j - first] = posterior[i] * like[i * s->grid + j];
    for (size_t b = 0; b < a; b++)
      squares[a * kept + b] = s->squares[i * points + s->kept[b]];
  }
  return within(s, t + 1) + clew_get_kernels_f64()->expected_variance(joint, s->grid, squares, kept, last - first);
}

/* The variance of a posterior over the offset centres. */
static double variance(const state *s, const double *posterior) {
  double sum = 0;
  for (size_t i = 0; i < s->p->points; i++)
    for (size_t l = 0; l < i; l++)
      sum += s->squares[i * s->p->points + l] * posterior[i] * posterior[l];
  return sum;
}

static void layer_values(state *s, size_t layer, size_t t, const double *posterior, size_t n, double *value);

/* value [n]: the least expected variance when this layer's heads from `head` on ask `set`. */
static void ask(state *s, size_t layer, size_t head, const int32_t *set, size_t t, const double *posterior, size_t n,
                double *value) {
  const clew_programme *p = s->p;
  if (s->cancel != NULL && clew_cancel_check(s->cancel)) {
    memset(value, 0, n * sizeof *value); /* nobody will read them */
    return;
  }
  if (head == (size_t)p->heads[layer]) {
    layer_values(s, layer + 1, t, posterior, n, value);
    return;
  }
  if (!innovation(s, t, (size_t)set[head])) {
    ask(s, layer, head + 1, set, t, posterior, n, value); /* an answer that is known already */
    return;
  }
  const size_t grid = tabulate(s, t), points = p->points;
  if (layer + 1 == p->layers && head + 1 == (size_t)p->heads[layer]) {
    offset_centres(s, t + 1);
    measure_distances(s);
    for (size_t b = 0; b < n; b++)
      value[b] = expect_last(s, posterior + b * points, t, grid);
    return;
  }
  level *next = &s->levels[t];
  size_t children = 0;
  for (size_t b = 0; b < n; b++)
    for (size_t j = 0; j < grid; j++) {
      double *child = next->posterior + children * points, mass = 0;
      for (size_t i = 0; i < points; i++)
        mass += child[i] = posterior[b * points + i] * next->like[i * s->grid + j];
      if (mass < NEGLIGIBLE * p->step)
        continue;
      for (size_t i = 0; i < points; i++)
        child[i] /= mass;
      next->weight[children] = mass;
      next->parent[children++] = b;
    }
  ask(s, layer, head + 1, set, t + 1, next->posterior, children, next->value);
  memset(value, 0, n * sizeof *value);
  for (size_t c = 0; c < children; c++)
    value[next->parent[c]] += next->weight[c] * next->value[c];
}

/* value [n]: the least expected variance from a layer on, over all sets of its actions. */
static void layer_values(state *s, size_t layer, size_t t, const double *posterior, size_t n, double *value) {
  const clew_programme *p = s->p;
  if (layer == p->layers) { /* the last heads asked what was known */
    offset_centres(s, t);
    measure_distances(s);
    for (size_t b = 0; b < n; b++)
      value[b] = within(s, t) + variance(s, posterior + b * p->points);
    return;
  }
  const int32_t heads = p->heads[layer];
  int32_t set[16];
  double *least = s->least + layer * s->most;
  for (int32_t h = 0; h < heads; h++)
    set[h] = h;
  for (size_t b = 0; b < n; b++)
    value[b] = INFINITY;
  for (;;) {
    ask(s, layer, 0, set, t, posterior, n, least);
    for (size_t b = 0; b < n; b++)
      value[b] = fmin(value[b], least[b]);
    int32_t h = heads - 1; /* the next set in lexicographic order */
    while (h >= 0 && set[h] == (int32_t)p->actions - heads + h)
      h--;
    if (h < 0)
      return;
    set[h]++;
    for (int32_t l = h + 1; l < heads; l++)
      set[l] = set[l - 1] + 1;
  }
}

/* ---- Tasks: one for each first set and each outcome of its first message --------------------------------------- */

typedef struct programme_job {
  const clew_programme *p;
  const int32_t *first; /* [n, heads[0]] */
  const bool *halved;   /* [n] */
  size_t outcomes;      /* tasks of a first set */
  state *states;        /* [slots] */
  double *parts;        /* [n, outcomes] */
  clew_cancel *cancel;
} programme_job;

static void programme_task(void *ctx, size_t index, unsigned slot) {
  const programme_job *job = ctx;
  const clew_programme *p = job->p;
  const size_t set = index / job->outcomes, points = p->points;
  const int32_t *first = job->first + set * (size_t)p->heads[0];
  size_t j = index % job->outcomes;
  state *s = &job->states[slot];
  s->cancel = slot == 0 ? job->cancel : NULL;
  innovation(s, 0, (size_t)first[0]); /* of unit length */
  if (s->messages == 1) {
    const size_t grid = tabulate(s, 0);
    offset_centres(s, 1);
    measure_distances(s);
    job->parts[index] = j == 0 ? expect_last(s, p->probabilities, 0, grid) : 0;
    return;
  }
  const size_t grid = tabulate(s, 0);
  double factor = 1;
  if (job->halved[set])
    j += grid / 2, factor = 2;
  job->parts[index] = 0;
  if (j >= grid)
    return;
  level *here = &s->levels[0];
  double mass = 0;
  for (size_t i = 0; i < points; i++)
    mass += here->posterior[i] = p->probabilities[i] * here->like[i * s->grid + j];
  if (mass < NEGLIGIBLE * p->step)
    return;
  for (size_t i = 0; i < points; i++)
    here->posterior[i] /= mass;
  double value;
  ask(s, 0, 1, first, 1, here->posterior, 1, &value);
  job->parts[index] = factor * mass * value;
}

static void free_states(state *states, size_t slots, size_t messages) {
  for (size_t i = 0; i < slots && states != NULL; i++) {
    for (size_t t = 0; t <= messages && states[i].levels != NULL; t++) {
      level *l = &states[i].levels[t];
      clew_free(l->like), clew_free(l->posterior), clew_free(l->weight), clew_free(l->value), clew_free(l->parent);
    }
    clew_free(states[i].levels), clew_free(states[i].seen), clew_free(states[i].offsets), clew_free(states[i].few);
    clew_free(states[i].least), clew_free(states[i].squares), clew_free(states[i].means), clew_free(states[i].kept);
  }
  clew_free(states);
}

/* Memory of one slot; false when there is none. Level t holds the posteriors after t + 1 messages. */
static bool make_state(state *s, const clew_programme *p, size_t messages, size_t grid, double deviation) {
  *s = (state){.p = p, .messages = messages, .grid = grid, .deviation = deviation};
  s->levels = clew_alloc(messages + 1, sizeof *s->levels);
  s->seen = clew_alloc(messages + 1, p->dim * sizeof(double));
  s->offsets = clew_alloc(p->points, p->dim * sizeof(double));
  s->few = clew_alloc(p->points, (grid + p->points) * sizeof(double));
  s->squares = clew_alloc(p->points, p->points * sizeof(double));
  s->means = clew_alloc(p->points, sizeof(double));
  s->kept = clew_alloc(p->points, sizeof(size_t));
  bool whole = s->levels && s->seen && s->offsets && s->few && s->squares && s->means && s->kept;
  size_t batch = 1; /* posteriors after t + 1 messages: the first message is fixed by the task */
  for (size_t t = 0; t <= messages && whole; t++) {
    level *l = &s->levels[t];
    l->like = clew_alloc(p->points, grid * sizeof(double));
    if (t > 0 && t + 1 < messages)
      batch *= grid;
    l->posterior = clew_alloc(batch, p->points * sizeof(double));
    l->weight = clew_alloc(batch, sizeof(double));
    l->value = clew_alloc(batch, sizeof(double));
    l->parent = clew_alloc(batch, sizeof(size_t));
    whole = l->like && l->posterior && l->weight && l->value && l->parent;
  }
  s->most = batch;
  s->least = clew_alloc(p->layers, batch * sizeof(double));
  return whole && s->least;
}

static clew_status check(const clew_programme *p, const int32_t *first, size_t n, size_t *messages, clew_error *err) {
  *messages = 0;
  for (size_t layer = 0; layer < p->layers; layer++) {
    const int32_t heads = p->heads[layer];
    if (heads < 1 || heads > 16 || (size_t)heads > p->actions)
      return clew_fail(err, CLEW_ERROR_VALUE,
                       "layer %zu has %d heads and %zu actions: 1 to 16 heads, no more than actions", layer, (int)heads,
                       p->actions);
    *messages += (size_t)heads;
  }
  if (p->layers == 0 || p->points == 0 || *messages > p->dim)
    return clew_fail(err, CLEW_ERROR_SHAPE, "%zu layers with %zu messages in all, %zu centres of %zu values", p->layers,
                     *messages, p->points, p->dim);
  if (!(p->noise > 0) || !(p->spread >= 0) || !(p->step > 0) || !(p->reach > 0))
    return clew_fail(err, CLEW_ERROR_VALUE, "noise %g, step %g and reach %g must be positive, spread %g not negative",
                     p->noise, p->step, p->reach, p->spread);
  for (size_t i = 0; i < n * (size_t)p->heads[0]; i++)
    if (first[i] < 0 || (size_t)first[i] >= p->actions)
      return clew_fail(err, CLEW_ERROR_VALUE, "first action %d of %zu", (int)first[i], p->actions);
  return CLEW_OK;
}

clew_status clew_programme_values(double *values, const int32_t *first, const bool *halved, size_t n,
                                  const clew_programme *p, clew_cancel *cancel, clew_error *err) {
  size_t messages;
  clew_status status = check(p, first, n, &messages, err);
  if (status != CLEW_OK)
    return status;
  const double deviation = sqrt(p->noise * p->noise + p->spread);
  double farthest = 0;
  for (size_t i = 0; i < p->points; i++)
    farthest = fmax(farthest, sqrt(dot(p->centres + i * p->dim, p->centres + i * p->dim, p->dim)));
  const size_t grid = 2 * half_grid(p, farthest, deviation) + 2, slots = clew_pool_threads();
  programme_job job = {
      .p = p, .first = first, .halved = halved, .cancel = cancel, .outcomes = messages == 1 ? 1 : grid};
  job.states = clew_alloc(slots, sizeof *job.states);
  job.parts = clew_alloc(n + 1, job.outcomes * sizeof *job.parts);
  bool whole = job.states != NULL && job.parts != NULL;
  for (size_t i = 0; i < slots && whole; i++)
    whole = make_state(&job.states[i], p, messages, grid, deviation);
  if (!whole) {
    status = clew_fail(err, CLEW_ERROR_MEMORY,
                       "out of memory: %zu messages on a grid of %zu values need %zu ^ %zu posteriors at once",
                       messages, grid, grid, messages > 2 ? messages - 2 : 0);
    goto done;
  }
  if (!clew_pool_for(n * job.outcomes, programme_task, &job, (unsigned)slots, cancel)) {
    status = clew_fail(err, CLEW_ERROR_CANCELLED, "cancelled");
    goto done;
  }
  for (size_t i = 0; i < n; i++) {
    values[i] = 0;
    for (size_t j = 0; j < job.outcomes; j++)
      values[i] += job.parts[i * job.outcomes + j];
  }
done:
  free_states(job.states, slots, messages);
  clew_free(job.parts);
  return status;
}
