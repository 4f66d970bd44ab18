/* Models built by hand: closed forms, requests that must be refused, cancelling, threads, and every allocation failing
 * in turn. Both precisions. */
#include <math.h>
#include <pthread.h>

#include "plan.h"
#include "pool.h"
#include "test.h"

/* ---- A small model -------------------------------------------------------------------------------------------- */

typedef struct fixture {
  clew_config config;
  clew_layer_config layers[4];
  double inv_freq[8];
  clew_tensor tensors[CLEW_N_WEIGHTS * 4];
  size_t n_tensors;
  clew_slab *slabs[CLEW_N_WEIGHTS * 4];
} fixture;

static void put(void *data, size_t i, double value, clew_dtype dtype) {
  if (dtype == CLEW_FLOAT32)
    ((float *)data)[i] = (float)value;
  else
    ((double *)data)[i] = value;
}

static double get(const void *data, size_t i, clew_dtype dtype) {
  return dtype == CLEW_FLOAT32 ? (double)((const float *)data)[i] : ((const double *)data)[i];
}

static double round_off(clew_dtype dtype) { return dtype == CLEW_FLOAT32 ? 0x1p-24 : 0x1p-53; }

static void begin(fixture *f, clew_dtype dtype) {
  memset(f, 0, sizeof *f);
  f->config = (clew_config){.dtype = dtype,
                            .n_layers = 1,
                            .d_model = 4,
                            .n_heads = 1,
                            .n_kv_heads = 1,
                            .d_head = 4,
                            .d_mlp = 6,
                            .n_ctx = 16,
                            .d_vocab = 5,
                            .d_vocab_out = 5,
                            .eps = 1e-5,
                            .embed_scale = 1,
                            .causal = true,
                            .attn_only = true};
  for (int l = 0; l < 4; l++)
    f->layers[l].score_scale = 1;
}

static size_t axis_length(const clew_config *c, char axis) {
  switch (axis) {
  case 'v':
    return (size_t)c->d_vocab;
  case 'u':
    return (size_t)c->d_vocab_out;
  case 'd':
    return (size_t)c->d_model;
  case 'h':
    return (size_t)c->n_heads;
  case 'g':
    return (size_t)c->n_kv_heads;
  case 'e':
    return (size_t)c->d_head;
  case 'f':
    return (size_t)c->d_mlp;
  default:
    return (size_t)(c->n_ctx + c->pos_offset);
  }
}

/* Adds a weight of the right shape; value(i, j) of its last two axes (a vector has i = 0). With `apart` values lie two
 * items from each other, a layout that the engine must repack. */
static void add(fixture *f, clew_weight weight, int32_t layer, double (*value)(size_t i, size_t j), bool apart) {
  const char *axes = clew_weights[weight].axes;
  clew_tensor *t = &f->tensors[f->n_tensors];
  *t = (clew_tensor){.weight = weight, .layer = layer, .n_dims = (int32_t)strlen(axes)};
  size_t n = 1;
  for (int32_t d = t->n_dims - 1; d >= 0; d--) {
    t->shape[d] = axis_length(&f->config, axes[d]);
    t->strides[d] = (ptrdiff_t)(n * (apart ? 2 : 1));
    n *= t->shape[d];
  }
  const size_t cols = t->shape[t->n_dims - 1], rows = t->n_dims > 1 ? t->shape[t->n_dims - 2] : 1;
  clew_slab *slab = clew_slab_new(n * 2 * 8);
  if (slab == NULL)
    abort();
  memset(clew_slab_data(slab), 0xff, n * 2 * 8);
  for (size_t i = 0; i < n; i++)
    put(clew_slab_data(slab), apart ? 2 * i : i, value(i / cols % rows, i % cols), f->config.dtype);
  t->data = clew_slab_data(slab);
  f->slabs[f->n_tensors++] = slab;
}

static void end(fixture *f) {
  for (size_t i = 0; i < f->n_tensors; i++)
    clew_slab_release(f->slabs[i]);
}

static double zero(size_t i, size_t j) { return (void)i, (void)j, 0; }
static double one(size_t i, size_t j) { return (void)i, (void)j, 1; }
static double unit(size_t i, size_t j) { return i == j; }
static double small(size_t i, size_t j) { return (double)((i * 7 + j * 3) % 11) * 0.25 - 1.25; }
static double wavy(size_t i, size_t j) { return sin((double)(3 * i + 5 * j + 1)); }

static clew_model *model_of(fixture *f) {
  clew_model *model = NULL;
  clew_error err = {.message = ""};
  f->config.layers = f->layers;
  f->config.inv_freq = f->inv_freq;
  CHECK(clew_model_new(&model, &f->config, f->tensors, f->n_tensors, &err) == CLEW_OK, "%s", err.message);
  return model;
}

static clew_request ask(int32_t n_seq, const int32_t *lengths, const clew_site_ref *capture, size_t n_capture) {
  return (clew_request){.n_seq = n_seq,
                        .lengths = lengths,
                        .capture = capture,
                        .n_capture = n_capture,
                        .start_layer = -1,
                        .stop_layer = -1,
                        .logits = CLEW_LOGITS_ALL};
}

static clew_run *run_of(const clew_model *model, const clew_request *request, const int32_t *tokens, clew_plan **plan) {
  clew_run *run = NULL;
  clew_error err = {.message = ""};
  const clew_input input = {.tokens = tokens};
  CHECK(clew_plan_new(plan, model, request, &err) == CLEW_OK, "%s", err.message);
  CHECK(*plan && clew_run_new(&run, *plan, &input, NULL, &err) == CLEW_OK, "%s", err.message);
  return run;
}

/* The array of a site on the first of its layers, or NULL. */
static const void *array(const clew_plan *plan, const clew_run *run, clew_site site) {
  for (size_t i = 0; plan && run && i < clew_plan_n_outputs(plan); i++) {
    const clew_output *o = clew_plan_output(plan, i);
    if (o->site == site)
      return (const char *)clew_slab_data(clew_run_slab(run, o->slab)) + o->offset;
  }
  return NULL;
}

/* ---- Closed forms --------------------------------------------------------------------------------------------- */

enum { D = 4, V = 5 };

static double embedding(int32_t token, size_t j) { return small((size_t)token, j); }

/* One head whose queries are 0: every visible key weighs the same, and the stream is x + mean of the visible x. The
 * unembedding shows the stream's four values and a zero. */
static void test_uniform_attention(clew_dtype dtype, int32_t window, bool captured, clew_logits logits) {
  enum { LONG = 1100 };
  static int32_t tokens[LONG + 67 + 1];
  const int32_t lengths[3] = {LONG, 67, 1};
  for (size_t i = 0; i < LONG + 67 + 1; i++)
    tokens[i] = (int32_t)((i * i / 3 + i) % V);
  fixture f;
  begin(&f, dtype);
  f.layers[0].window = window;
  add(&f, CLEW_WEIGHT_W_E, 0, small, false);
  add(&f, CLEW_WEIGHT_W_Q, 0, zero, false);
  add(&f, CLEW_WEIGHT_W_K, 0, small, false);
  add(&f, CLEW_WEIGHT_W_V, 0, unit, true);
  add(&f, CLEW_WEIGHT_W_O, 0, unit, false);
  add(&f, CLEW_WEIGHT_W_U, 0, unit, true);
  clew_model *model = model_of(&f);
  const clew_site_ref capture[1] = {{CLEW_PATTERN, 0}};
  clew_request request = ask(3, lengths, capture, captured ? 1 : 0);
  request.logits = logits;
  clew_plan *plan = NULL;
  clew_run *run = run_of(model, &request, tokens, &plan);
  const void *got = array(plan, run, CLEW_LOGITS), *pattern = array(plan, run, CLEW_PATTERN);
  const size_t n_pos = logits == CLEW_LOGITS_LAST ? 1 : LONG;
  double worst = 0, padding = 0, total = 0;
  const int32_t *token = tokens;
  for (size_t seq = 0; seq < 3 && got; token += lengths[seq++]) {
    long double sum[D] = {0};
    for (int32_t p = 0; p < LONG; p++) {
      const size_t at = (seq * n_pos + (size_t)(n_pos == 1 ? 0 : p)) * V;
      if (p >= lengths[seq]) {
        for (size_t j = 0; j < V && n_pos > 1; j++)
          padding += fabs(get(got, at + j, dtype));
        continue;
      }
      const int32_t seen = window > 0 && p + 1 > window ? window : p + 1;
      for (size_t j = 0; j < D; j++) {
        sum[j] += (long double)embedding(token[p], j);
        if (window > 0 && p >= window)
          sum[j] -= (long double)embedding(token[p - window], j);
        if (n_pos == 1 && p + 1 < lengths[seq])
          continue;
        const long double exact = (long double)embedding(token[p], j) + sum[j] / seen;
        worst = fmax(worst, (double)fabsl((long double)get(got, at + j, dtype) - exact));
      }
      if (n_pos > 1 || p + 1 == lengths[seq])
        worst = fmax(worst, fabs(get(got, at + D, dtype)));
      if (pattern) {
        double row = 0;
        for (size_t k = 0; k < LONG; k++)
          row += get(pattern, (seq * LONG + (size_t)p) * LONG + k, dtype);
        total = fmax(total, fabs(row - 1));
      }
    }
  }
  /* a sum of at most 1100 terms below 1.25, in blocks of 512 */
  CHECK(got && worst <= 600 * round_off(dtype), "window %d captured %d logits %d: %g", window, captured, logits, worst);
  CHECK(padding == 0 && (pattern != NULL) == captured && total <= 600 * round_off(dtype), "%g %g", padding, total);
  clew_run_free(run);
  clew_plan_free(plan);
  clew_model_free(model);
  end(&f);
}

/* Without a softmax: the stream is x_i + Σ_j (x_i · x_j) x_j / n. */
static void test_linear_attention(clew_dtype dtype, bool causal, bool exclude_self, bool exclude_last) {
  enum { N = 90 };
  int32_t tokens[N];
  const int32_t lengths[1] = {N};
  for (int32_t i = 0; i < N; i++)
    tokens[i] = (i * i + 2 * i) % V;
  fixture f;
  begin(&f, dtype);
  f.config.linear_attention = true, f.config.causal = causal, f.config.exclude_self = exclude_self;
  f.config.exclude_last = exclude_last;
  add(&f, CLEW_WEIGHT_W_E, 0, small, false);
  add(&f, CLEW_WEIGHT_W_Q, 0, unit, false);
  add(&f, CLEW_WEIGHT_W_K, 0, unit, true);
  add(&f, CLEW_WEIGHT_W_V, 0, unit, false);
  add(&f, CLEW_WEIGHT_W_O, 0, unit, false);
  add(&f, CLEW_WEIGHT_W_U, 0, unit, false);
  clew_model *model = model_of(&f);
  const clew_request request = ask(1, lengths, NULL, 0);
  clew_plan *plan = NULL;
  clew_run *run = run_of(model, &request, tokens, &plan);
  const void *got = array(plan, run, CLEW_LOGITS);
  double worst = 0;
  for (int32_t i = 0; i < N && got; i++) {
    long double z[D] = {0};
    int32_t n = 0;
    for (int32_t k = 0; k < N; k++) {
      if ((causal && k > i) || (exclude_self && k == i) || (exclude_last && k == N - 1))
        continue;
      long double score = 0;
      for (size_t j = 0; j < D; j++)
        score += (long double)embedding(tokens[i], j) * (long double)embedding(tokens[k], j);
      for (size_t j = 0; j < D; j++)
        z[j] += score * (long double)embedding(tokens[k], j);
      n++;
    }
    for (size_t j = 0; j < D; j++) {
      const long double exact = (long double)embedding(tokens[i], j) + (n ? z[j] / n : 0);
      worst = fmax(worst, (double)fabsl((long double)get(got, (size_t)i * V + j, dtype) - exact));
    }
  }
  CHECK(got && worst <= 400 * round_off(dtype), "causal %d exclude_self %d exclude_last %d: %g", causal, exclude_self,
        exclude_last, worst);
  clew_run_free(run);
  clew_plan_free(plan);
  clew_model_free(model);
  end(&f);
}

/* A normalised input sums to 0, so a matrix of ones gives 0, the bias 1, relu 1, and six of them 6: the block adds 6.
 * Logits of 0 make every token's loss log 5. */
static void test_norm_mlp_and_loss(clew_dtype dtype) {
  const int32_t lengths[2] = {7, 3}, tokens[10] = {0, 1, 2, 3, 4, 0, 1, 3, 3, 2};
  fixture f;
  begin(&f, dtype);
  f.config.attn_only = false, f.config.norm = CLEW_NORM_LAYER, f.config.act = CLEW_ACT_RELU;
  add(&f, CLEW_WEIGHT_W_E, 0, small, false);
  for (int weight = CLEW_WEIGHT_W_Q; weight <= CLEW_WEIGHT_W_V; weight += 2)
    add(&f, (clew_weight)weight, 0, wavy, false);
  add(&f, CLEW_WEIGHT_W_O, 0, zero, false);
  add(&f, CLEW_WEIGHT_W_IN, 0, one, false);
  add(&f, CLEW_WEIGHT_B_IN, 0, one, true);
  add(&f, CLEW_WEIGHT_W_OUT, 0, one, false);
  add(&f, CLEW_WEIGHT_W_U, 0, zero, false);
  clew_model *model = model_of(&f);
  const clew_site_ref capture[1] = {{CLEW_RESID_POST, 0}};
  clew_request request = ask(2, lengths, capture, 1);
  request.logits = CLEW_LOGITS_LOSS;
  clew_plan *plan = NULL;
  clew_run *run = run_of(model, &request, tokens, &plan);
  const void *stream = array(plan, run, CLEW_RESID_POST), *loss = array(plan, run, CLEW_LOGITS);
  double worst = 0;
  for (size_t seq = 0, token = 0; seq < 2 && stream && loss; seq++)
    for (size_t p = 0; p < 7; p++) {
      const bool is_real = p < (size_t)lengths[seq];
      for (size_t j = 0; j < D; j++) {
        const double exact = is_real ? embedding(tokens[token], j) + 6 : 0;
        worst = fmax(worst, fabs(get(stream, (seq * 7 + p) * D + j, dtype) - exact));
      }
      if (p < 6)
        worst = fmax(worst, fabs(get(loss, seq * 6 + p, dtype) - (p + 1 < (size_t)lengths[seq] ? log(5) : 0)));
      token += is_real;
    }
  CHECK(stream && loss && worst <= 64 * round_off(dtype), "%g", worst);
  clew_run_free(run);
  clew_plan_free(plan);
  clew_model_free(model);
  end(&f);
}

/* ---- A model with everything ---------------------------------------------------------------------------------- */

/* Two layers with grouped heads, rotary positions of two bases, query and key norms, post-norms, a gated MLP, caps and
 * a window; some weights in a layout that must be repacked. */
static void add_everything(fixture *f, clew_dtype dtype) {
  begin(f, dtype);
  clew_config *c = &f->config;
  c->n_layers = 2, c->n_heads = 4, c->n_kv_heads = 2, c->d_model = 12, c->attn_only = false, c->gated = true;
  c->norm = CLEW_NORM_RMS, c->final_norm = c->post_norms = c->qk_norm = true, c->act = CLEW_ACT_SILU;
  c->position = CLEW_POSITION_ROTARY, c->n_rot = 4, c->n_inv_freq = 2, c->score_softcap = 3, c->logit_softcap = 4;
  for (int i = 0; i < 4; i++)
    f->inv_freq[i] = 1.0 / (1 + i);
  for (int l = 0; l < 2; l++)
    f->layers[l] = (clew_layer_config){.window = l ? 3 : 0, .rotary_base = l, .rotary = true, .score_scale = 0.5};
  for (int weight = 0; weight < CLEW_N_WEIGHTS; weight++) {
    const char *name = clew_weights[weight].name;
    const bool no_place = weight == CLEW_WEIGHT_W_POS;
    for (int32_t l = 0; l < (clew_weights[weight].layered ? 2 : 1) && !no_place; l++)
      add(f, (clew_weight)weight, l, strstr(name, ".w") ? one : wavy, (weight + l) % 3 == 0);
  }
}

static size_t all_sites(clew_site_ref *refs, const clew_model *model) {
  size_t n = 0;
  for (int site = 0; site < CLEW_N_SITES; site++)
    for (int32_t l = 0; l < (clew_sites[site].layered ? 2 : 1); l++)
      if (clew_model_has_site(model, (clew_site)site))
        refs[n++] = (clew_site_ref){(clew_site)site, l};
  return n;
}

typedef struct sweep {
  fixture *f;
  const int32_t *positions;
  clew_logits logits;
  bool capture;
  bool edited;              /* every site, each kind of edit in turn */
  clew_objective objective; /* with gradients by every site and weight */
  bool cached;              /* the run continues behind two positions of a cache, and appends to it */
} sweep;

/* Leaves what it is shown as it is; of the objective, gives the logits back as their own gradient. */
static int show(void *ctx, const void **result, clew_slab *value, int32_t index, clew_site_ref site, int32_t n_dims,
                const size_t *shape) {
  size_t values = 1;
  for (int32_t i = 0; i < n_dims; i++)
    values *= shape[i];
  const clew_slab **kept = ctx;
  if (index < 0) {
    *kept = value;
    *result = clew_slab_data(value);
  }
  return values == 0 || (index < 0 && site.site != CLEW_LOGITS);
}

static const int32_t sweep_lengths[2] = {6, 4}, sweep_tokens[10] = {0, 1, 2, 3, 4, 0, 1, 2, 3, 4};

static clew_status make_plan_run(void *ctx, clew_error *err) {
  const sweep *w = ctx;
  clew_site_ref refs[2 * CLEW_N_SITES];
  clew_model *model = NULL;
  clew_plan *plan = NULL;
  clew_run *run = NULL;
  clew_status status = clew_model_new(&model, &w->f->config, w->f->tensors, w->f->n_tensors, err);
  static const double value[4] = {0.5, 0.25, 1, 2};
  static const float value_f32[4] = {0.5f, 0.25f, 1, 2};
  static const int32_t zeros[2] = {0, 0}, past[2] = {2, 2}, targets[10] = {1, 2, -1, 3, 4, 0, 1, 2, 3, 4};
  static const int32_t picks[4] = {1, 0, 0, 4};
  static const double reference[10] = {-1, -2, -3, -4, -5, -5, -4, -3, -2, -1};
  clew_edit edits[2 * CLEW_N_SITES];
  clew_slab *cache_slab = NULL;
  const size_t cache_bytes = (size_t)2 * 8 * 2 * 4 * sizeof(double);
  if (status == CLEW_OK) {
    const size_t n = all_sites(refs, model);
    clew_request request = ask(2, sweep_lengths, refs, w->capture ? n : 0);
    request.logits = w->logits, request.positions = w->positions, request.n_positions = w->positions ? 2 : 0;
    if (w->edited) {
      for (size_t i = 0; i < n; i++) {
        const bool call = i % 4 == CLEW_EDIT_CALL && w->objective == CLEW_OBJECTIVE_NONE;
        const bool pushed = w->objective == CLEW_OBJECTIVE_TANGENTS && i % 4 == 3;
        const clew_edit_kind kind = call ? CLEW_EDIT_CALL : pushed ? CLEW_EDIT_TANGENT : (clew_edit_kind)(i % 3);
        edits[i] = (clew_edit){.site = refs[i].site,
                               .layer = refs[i].layer,
                               .kind = kind,
                               .positions = kind == CLEW_EDIT_SET ? zeros : NULL,
                               .n_positions = 1,
                               .neurons = kind == CLEW_EDIT_ADD ? zeros : NULL,
                               .n_neurons = 1,
                               .value = w->f->config.dtype == CLEW_FLOAT32 ? (const void *)value_f32 : value};
      }
      request.edits = edits, request.n_edits = n;
    }
    if (w->objective != CLEW_OBJECTIVE_NONE) {
      request.objective = w->objective, request.wrt = refs, request.n_wrt = n;
      request.weight_gradients = w->objective != CLEW_OBJECTIVE_TANGENTS;
    }
    if (w->cached) {
      request.past = past, request.append = true;
    }
    status = clew_plan_new(&plan, model, &request, err);
  }
  if (status == CLEW_OK && w->cached) {
    cache_slab = clew_slab_new(4 * cache_bytes);
    status = cache_slab ? CLEW_OK : clew_fail(err, CLEW_ERROR_MEMORY, "no memory for a cache");
  }
  if (status == CLEW_OK) {
    char *at = w->cached ? clew_slab_data(cache_slab) : NULL;
    void *parts[4] = {at, at ? at + cache_bytes : NULL, at ? at + 2 * cache_bytes : NULL,
                      at ? at + 3 * cache_bytes : NULL};
    if (at != NULL)
      memset(at, 0, 4 * cache_bytes);
    const clew_cache cache = {.k = parts, .v = parts + 2, .n_seq = 2, .capacity = 8};
    const clew_slab *kept = NULL;
    const clew_input input = {.tokens = sweep_tokens,
                              .cache = w->cached ? &cache : NULL,
                              .call = show,
                              .call_ctx = &kept,
                              .targets = targets,
                              .picks = picks,
                              .reference = reference,
                              .n_reference = 2};
    status = clew_run_new(&run, plan, &input, NULL, err);
  }
  clew_slab_release(cache_slab);
  if ((status == CLEW_OK) != (run != NULL) || (model == NULL && plan != NULL))
    status = CLEW_ERROR_VALUE;
  clew_run_free(run);
  clew_plan_free(plan);
  clew_model_free(model);
  return status;
}

/* Every allocation of making a model, planning and running fails in turn; the sanitizer sees what leaks. */
static void test_out_of_memory(clew_dtype dtype) {
  fixture f;
  add_everything(&f, dtype);
  f.config.layers = f.layers, f.config.inv_freq = f.inv_freq;
  const int32_t positions[2] = {-1, 2};
  sweep sweeps[] = {
      {.f = &f, .logits = CLEW_LOGITS_ALL, .capture = true},
      {.f = &f, .positions = positions, .logits = CLEW_LOGITS_LAST, .capture = true},
      {.f = &f, .logits = CLEW_LOGITS_LOSS, .capture = true},
      {.f = &f, .logits = CLEW_LOGITS_LAST},
      {.f = &f, .logits = CLEW_LOGITS_DIFFERENCE},
      {.f = &f, .logits = CLEW_LOGITS_KL, .capture = true},
      {.f = &f, .logits = CLEW_LOGITS_ALL, .capture = true, .edited = true},
      {.f = &f, .logits = CLEW_LOGITS_LAST, .edited = true},
      {.f = &f, .logits = CLEW_LOGITS_ALL, .capture = true, .cached = true},
      {.f = &f, .logits = CLEW_LOGITS_LAST, .cached = true, .edited = true},
      {.f = &f, .logits = CLEW_LOGITS_ALL, .objective = CLEW_OBJECTIVE_CROSS_ENTROPY},
      {.f = &f, .logits = CLEW_LOGITS_LAST, .objective = CLEW_OBJECTIVE_CROSS_ENTROPY, .edited = true},
      {.f = &f, .logits = CLEW_LOGITS_ALL, .objective = CLEW_OBJECTIVE_CALL},
      {.f = &f, .logits = CLEW_LOGITS_ALL, .objective = CLEW_OBJECTIVE_TANGENTS, .edited = true},
  };
  for (size_t i = 0; i < sizeof sweeps / sizeof *sweeps; i++) {
    const size_t n = sweep_memory(make_plan_run, &sweeps[i]);
    CHECK(n > (sweeps[i].capture ? 60u : 30u), "only %zu allocations", n);
  }
  clew_model_free(NULL);
  clew_plan_free(NULL);
  clew_run_free(NULL);
  end(&f);
}

/* ---- Refusals ------------------------------------------------------------------------------------------------- */

static void refuse_model(fixture *f, clew_status status, const char *words) {
  clew_model *model = (clew_model *)f;
  clew_error err = {.message = ""};
  f->config.layers = f->layers, f->config.inv_freq = f->inv_freq;
  CHECK(clew_model_new(&model, &f->config, f->tensors, f->n_tensors, &err) == status && model == NULL &&
            err.status == status && strstr(err.message, words),
        "expected \"%s\", got status %d: %s", words, (int)err.status, err.message);
  if (err.status == CLEW_OK)
    clew_model_free(model);
  CHECK(clew_model_new(&model, &f->config, f->tensors, f->n_tensors, NULL) == status, "without an error to fill");
}

static void test_refused_models(clew_dtype dtype) {
  fixture f;
#define REFUSED(change, status, words)                                                                                 \
  do {                                                                                                                 \
    add_everything(&f, dtype);                                                                                         \
    change;                                                                                                            \
    refuse_model(&f, status, words);                                                                                   \
    end(&f);                                                                                                           \
  } while (0)
  REFUSED(f.config.d_model = 0, CLEW_ERROR_VALUE, "d_model = 0, must be at least 1");
  REFUSED(f.config.n_layers = -1, CLEW_ERROR_VALUE, "n_layers = -1");
  REFUSED(f.config.n_kv_heads = 3, CLEW_ERROR_VALUE, "n_heads = 4 is no multiple of n_kv_heads = 3");
  REFUSED(f.config.n_rot = 3, CLEW_ERROR_VALUE, "n_rot = 3 must be even");
  REFUSED(f.config.n_rot = 6, CLEW_ERROR_VALUE, "n_rot = 6");
  REFUSED(f.layers[1].rotary_base = 2, CLEW_ERROR_VALUE, "layer 1 has window = 3, rotary_base = 2 of 2");
  REFUSED(f.layers[0].window = -1, CLEW_ERROR_VALUE, "layer 0 has window = -1");
  REFUSED(f.config.shared_norm = true, CLEW_ERROR_VALUE, "shared_norm needs parallel");
  REFUSED(f.config.parallel = true, CLEW_ERROR_UNSUPPORTED, "parallel blocks with post-norms");
  REFUSED(f.config.causal = false, CLEW_ERROR_UNSUPPORTED, "not causal");
  REFUSED(f.config.act = CLEW_N_ACT, CLEW_ERROR_VALUE, "unknown activation");
  REFUSED(f.config.d_vocab = 6, CLEW_ERROR_SHAPE, "embed.W_E has shape [5, 12], expected [6, 12]");
  REFUSED(f.tensors[3].layer = 2, CLEW_ERROR_SHAPE, "there is no such layer, n_layers = 2");
  REFUSED(f.config.qk_norm = false, CLEW_ERROR_SHAPE, "blocks.1.attn.k_norm.w: this configuration has no place for it");
  REFUSED(f.tensors[0].n_dims = 1, CLEW_ERROR_SHAPE, "embed.W_E has shape [5], expected [5, 12]");
  REFUSED(f.config.position = CLEW_POSITION_LEARNED, CLEW_ERROR_SHAPE, "pos_embed.W_pos is missing");
  add_everything(&f, dtype);
  const size_t n = f.n_tensors;
  f.n_tensors = 1;
  refuse_model(&f, CLEW_ERROR_SHAPE, "blocks.0.attn.W_Q is missing; blocks.1.attn.W_Q is missing");
  refuse_model(&f, CLEW_ERROR_SHAPE, "unembed.W_U is missing");
  f.n_tensors = n;
  end(&f);
  /* more than a message can hold: the rest is counted */
  begin(&f, dtype);
  clew_layer_config layers[200] = {{.window = 0}};
  clew_error err;
  clew_model *model = NULL;
  f.config.n_layers = 200, f.config.layers = layers;
  CHECK(clew_model_new(&model, &f.config, NULL, 0, &err) == CLEW_ERROR_SHAPE && strstr(err.message, "; and ") &&
            strstr(err.message, " more") && strlen(err.message) < sizeof err.message,
        "%s", err.message);
}

static void refuse_plan(const clew_model *model, clew_request request, clew_status status, const char *words) {
  clew_plan *plan = (clew_plan *)&request;
  clew_error err = {.message = ""};
  CHECK(clew_plan_new(&plan, model, &request, &err) == status && plan == NULL && strstr(err.message, words),
        "expected \"%s\", got status %d: %s", words, (int)err.status, err.message);
}

static void test_refused_requests(clew_dtype dtype) {
  fixture f;
  add_everything(&f, dtype);
  clew_model *model = model_of(&f);
  const int32_t lengths[2] = {3, 2}, empty[2] = {3, 0}, huge[2] = {INT32_MAX, INT32_MAX}, positions[2] = {0, 3};
  const clew_site_ref none = {CLEW_N_SITES, 0}, absent = {CLEW_POS_EMBED, 0}, far = {CLEW_Z, 2}, before = {CLEW_Z, 0};
  const clew_site_ref embed = {CLEW_EMBED, 0}, logits = {CLEW_LOGITS, 0}, last = {CLEW_LN_FINAL_OUT, 0};
  clew_request r;
#define REFUSED_REQUEST(change, status, words)                                                                         \
  do {                                                                                                                 \
    r = ask(2, lengths, NULL, 0);                                                                                      \
    change;                                                                                                            \
    refuse_plan(model, r, status, words);                                                                              \
  } while (0)
#define CAPTURES(site) r.capture = &site, r.n_capture = 1
  REFUSED_REQUEST(r.n_seq = 0, CLEW_ERROR_TOKEN, "empty batch");
  REFUSED_REQUEST(r.lengths = empty, CLEW_ERROR_TOKEN, "prompt 1 is empty");
  REFUSED_REQUEST(r.lengths = huge, CLEW_ERROR_TOKEN, "4294967294 tokens in one run");
  REFUSED_REQUEST(CAPTURES(none), CLEW_ERROR_SITE, "capture 0 is no site");
  REFUSED_REQUEST(CAPTURES(absent), CLEW_ERROR_SITE, "hook_pos_embed: this model has no such site");
  REFUSED_REQUEST(CAPTURES(far), CLEW_ERROR_SITE, "blocks.2.attn.hook_z: the model has 2 layers");
  REFUSED_REQUEST((CAPTURES(before), r.start_layer = 1), CLEW_ERROR_SITE, "the run covers blocks 1 to 1");
  REFUSED_REQUEST((CAPTURES(embed), r.start_layer = 0), CLEW_ERROR_SITE, "starts behind the embedding");
  REFUSED_REQUEST((CAPTURES(last), r.stop_layer = 1, r.logits = CLEW_LOGITS_NONE), CLEW_ERROR_SITE, "not computed");
  REFUSED_REQUEST((CAPTURES(logits), r.logits = CLEW_LOGITS_NONE), CLEW_ERROR_SITE, "asked for none");
  REFUSED_REQUEST(r.start_layer = 2, CLEW_ERROR_VALUE, "the model has blocks 0 to 1");
  REFUSED_REQUEST((r.stop_layer = 2, r.logits = CLEW_LOGITS_NONE), CLEW_ERROR_VALUE, "the model has blocks 0 to 1");
  REFUSED_REQUEST((r.start_layer = 1, r.stop_layer = 0), CLEW_ERROR_VALUE, "start_layer 1, stop_layer 0");
  REFUSED_REQUEST(r.stop_layer = 0, CLEW_ERROR_VALUE, "stops after block 0 has no logits");
  const double one = 1;
  const clew_edit push = {.site = CLEW_Z, .kind = CLEW_EDIT_TANGENT, .value = &one};
  REFUSED_REQUEST(r.recompute = true, CLEW_ERROR_VALUE, "recomputation is for gradients by weights alone");
  const clew_edit on_logits = {.site = CLEW_LOGITS, .kind = CLEW_EDIT_SET, .value = &one};
  REFUSED_REQUEST((r.logits = CLEW_LOGITS_DIFFERENCE, r.edits = &on_logits, r.n_edits = 1), CLEW_ERROR_SITE,
                  "keeps none");
#define FORWARD r.objective = CLEW_OBJECTIVE_TANGENTS
  REFUSED_REQUEST((r.edits = &push, r.n_edits = 1), CLEW_ERROR_VALUE, "takes no derivatives forward");
  REFUSED_REQUEST((FORWARD, r.logits = CLEW_LOGITS_LAST), CLEW_ERROR_VALUE, "taken at all positions");
  REFUSED_REQUEST((FORWARD, r.weight_gradients = true), CLEW_ERROR_VALUE, "none by weights");
  REFUSED_REQUEST((FORWARD, r.append = true), CLEW_ERROR_VALUE, "cached keys");
  const int32_t tail[2] = {3, 2}, none_of_it[2] = {0, 1}, too_much[2] = {1, 3};
#define LAST(counts) r.last = counts, r.logits = CLEW_LOGITS_LAST
  REFUSED_REQUEST(r.last = tail, CLEW_ERROR_VALUE, "plain runs that want the last");
  REFUSED_REQUEST((LAST(tail), CAPTURES(before)), CLEW_ERROR_VALUE, "plain runs that want the last");
  REFUSED_REQUEST((LAST(tail), r.edits = &on_logits, r.n_edits = 1), CLEW_ERROR_VALUE, "plain runs");
  REFUSED_REQUEST((LAST(tail), r.objective = CLEW_OBJECTIVE_CROSS_ENTROPY), CLEW_ERROR_VALUE, "plain runs");
  REFUSED_REQUEST((LAST(none_of_it)), CLEW_ERROR_VALUE, "the last 0 positions of prompt 0, which has 3");
  REFUSED_REQUEST((LAST(too_much)), CLEW_ERROR_VALUE, "the last 3 positions of prompt 1, which has 2");
  REFUSED_REQUEST((r.positions = positions, r.n_positions = 2), CLEW_ERROR_SHAPE, "position 3 of a prompt of 3 tokens");

  clew_plan *plan = NULL;
  clew_run *run = NULL;
  clew_error err;
  r = ask(2, lengths, NULL, 0);
  CHECK(clew_plan_new(&plan, model, &r, &err) == CLEW_OK);
  const int32_t bad[5] = {0, 1, 2, 3, 5}, negative[5] = {0, -7, 2, 3, 4}, good[5] = {0, 1, 2, 3, 4};
  CHECK(clew_run_new(&run, plan, &(clew_input){.tokens = bad}, NULL, &err) == CLEW_ERROR_TOKEN && run == NULL &&
            strstr(err.message, "token 5 at position 1 of prompt 1: the vocabulary has ids 0 to 4"),
        "%s", err.message);
  CHECK(clew_run_new(&run, plan, &(clew_input){.tokens = negative}, NULL, &err) == CLEW_ERROR_TOKEN &&
            strstr(err.message, "token -7 at position 1 of prompt 0"),
        "%s", err.message);
  CHECK(clew_run_new(&run, plan, &(clew_input){.tokens = NULL}, NULL, &err) == CLEW_ERROR_TOKEN);
  CHECK(clew_run_new(&run, plan, &(clew_input){.tokens = good}, NULL, &err) == CLEW_OK && run, "%s", err.message);
  clew_run_free(run);
  clew_plan_free(plan);
  r.logits = CLEW_LOGITS_KL;
  CHECK(clew_plan_new(&plan, model, &r, &err) == CLEW_OK);
  const int32_t picks[4] = {1, 0, 2, 0};
  const double reference[10] = {0};
  clew_input metric = {.tokens = good};
  CHECK(clew_run_new(&run, plan, &metric, NULL, &err) == CLEW_ERROR_VALUE &&
        strstr(err.message, "tokens that it reads"));
  metric.picks = picks;
  CHECK(clew_run_new(&run, plan, &metric, NULL, &err) == CLEW_ERROR_VALUE && strstr(err.message, "and a reference"));
  metric.reference = reference, metric.n_reference = 2;
  CHECK(clew_run_new(&run, plan, &metric, NULL, &err) == CLEW_ERROR_TOKEN &&
            strstr(err.message, "reference 2 of sequence 1: there are 2"),
        "%s", err.message);
  clew_plan_free(plan);
  r.logits = CLEW_LOGITS_ALL;
  r.from_embeddings = true;
  CHECK(clew_plan_new(&plan, model, &r, &err) == CLEW_OK);
  CHECK(clew_run_new(&run, plan, &(clew_input){.tokens = good}, NULL, &err) == CLEW_ERROR_SHAPE && run == NULL);
  clew_plan_free(plan);
  clew_model_free(model);
  end(&f);
}

/* ---- Plans, threads, cancelling ------------------------------------------------------------------------------- */

static void test_plan_counts(clew_dtype dtype) {
  fixture f;
  add_everything(&f, dtype);
  clew_model *model = model_of(&f);
  clew_site_ref refs[2 * CLEW_N_SITES];
  const int32_t lengths[2] = {6, 4};
  const clew_request request = ask(2, lengths, refs, all_sites(refs, model));
  clew_plan *plan = NULL;
  clew_run *run = run_of(model, &request, sweep_tokens, &plan);
  size_t slabs = 0;
  for (size_t i = 0; plan && i < clew_plan_n_slabs(plan); i++) {
    slabs += clew_plan_slab_bytes(plan, i);
    CHECK(run && clew_slab_bytes(clew_run_slab(run, i)) == clew_plan_slab_bytes(plan, i));
  }
  CHECK(plan && slabs == clew_plan_keep_bytes(plan) && clew_plan_scratch_bytes(plan) > 0 && clew_plan_flops(plan) > 0);
  for (size_t i = 0; plan && i < clew_plan_n_steps(plan); i++) {
    char text[200], tiny[8];
    clew_plan_describe(plan, i, text, sizeof text);
    clew_plan_describe(plan, i, tiny, sizeof tiny);
    CHECK(strlen(text) > 10 && strncmp(text, tiny, 7) == 0 && strlen(tiny) == 7, "%s / %s", text, tiny);
  }
  /* a slab outlives the run that made it */
  clew_slab *slab = run ? clew_slab_retain(clew_run_slab(run, 0)) : NULL;
  const double before = slab ? get(clew_slab_data(slab), 0, dtype) : 0;
  clew_run_free(run);
  clew_plan_free(plan);
  clew_model_free(model);
  CHECK(slab && before == get(clew_slab_data(slab), 0, dtype) && isfinite(before));
  clew_slab_release(slab);
  end(&f);
}

typedef struct shared {
  const clew_plan *plan;
  const void *want;
  size_t bytes;
  atomic_int wrong;
} shared;

static void *run_often(void *ctx) {
  shared *s = ctx;
  for (int i = 0; i < 20; i++) {
    clew_run *run = NULL;
    if (clew_run_new(&run, s->plan, &(clew_input){.tokens = sweep_tokens}, NULL, NULL) != CLEW_OK ||
        memcmp(clew_slab_data(clew_run_slab(run, 0)), s->want, s->bytes) != 0)
      s->wrong++;
    clew_run_free(run);
  }
  return NULL;
}

/* Several threads run one plan; the rotary tables are made by whoever comes first. */
static void test_threads(clew_dtype dtype) {
  fixture f;
  add_everything(&f, dtype);
  clew_model *model = model_of(&f), *fresh = model_of(&f);
  const clew_request request = ask(2, sweep_lengths, NULL, 0);
  clew_plan *plan = NULL, *other = NULL;
  clew_run *run = run_of(model, &request, sweep_tokens, &plan);
  CHECK(clew_plan_new(&other, fresh, &request, NULL) == CLEW_OK);
  shared s = {.plan = other, .want = clew_slab_data(clew_run_slab(run, 0)), .bytes = clew_plan_slab_bytes(plan, 0)};
  pthread_t threads[4];
  clew_set_threads(3);
  for (int i = 0; i < 4; i++)
    pthread_create(&threads[i], NULL, run_often, &s);
  for (int i = 0; i < 4; i++)
    pthread_join(threads[i], NULL);
  CHECK(s.wrong == 0, "%d runs differ", s.wrong);
  clew_run_free(run);
  clew_plan_free(plan);
  clew_plan_free(other);
  clew_model_free(model);
  clew_model_free(fresh);
  end(&f);
}

static int polls;
static int refuse_to_go_on(void *ctx) { return ++polls >= *(const int *)ctx; }

/* Cancelled at the first poll, and not at all. */
static void test_cancel(clew_dtype dtype) {
  fixture f;
  add_everything(&f, dtype);
  clew_model *model = model_of(&f);
  const clew_request request = ask(2, sweep_lengths, NULL, 0);
  clew_plan *plan = NULL;
  clew_run *run = run_of(model, &request, sweep_tokens, &plan), *cancelled = NULL;
  int limit = 1;
  clew_error err;
  clew_cancel cancel = {.poll = refuse_to_go_on, .ctx = &limit, .last_poll = 1}; /* long ago: asked at once */
  polls = 0;
  CHECK(clew_run_new(&cancelled, plan, &(clew_input){.tokens = sweep_tokens}, &cancel, &err) == CLEW_ERROR_CANCELLED);
  CHECK(cancelled == NULL && polls == 1 && cancel.cancelled && strstr(err.message, "cancelled at step 1 of"), "%s",
        err.message);
  limit = 1000000;
  cancel = (clew_cancel){.poll = refuse_to_go_on, .ctx = &limit, .last_poll = 1};
  CHECK(clew_run_new(&cancelled, plan, &(clew_input){.tokens = sweep_tokens}, &cancel, &err) == CLEW_OK);
  CHECK(cancelled && memcmp(clew_slab_data(clew_run_slab(cancelled, 0)), clew_slab_data(clew_run_slab(run, 0)),
                            clew_plan_slab_bytes(plan, 0)) == 0);
  clew_run_free(cancelled);
  clew_run_free(run);
  clew_plan_free(plan);
  clew_model_free(model);
  end(&f);
}

static void run_in_child(void *ctx) {
  shared *s = ctx;
  run_often(s);
  CHECK(s->wrong == 0);
}

static void test_fork(clew_dtype dtype) {
  fixture f;
  add_everything(&f, dtype);
  clew_model *model = model_of(&f);
  const clew_request request = ask(2, sweep_lengths, NULL, 0);
  clew_plan *plan = NULL;
  clew_run *run = run_of(model, &request, sweep_tokens, &plan);
  shared s = {.plan = plan, .want = clew_slab_data(clew_run_slab(run, 0)), .bytes = clew_plan_slab_bytes(plan, 0)};
  check_in_child(run_in_child, &s, "a run in a forked child");
  run_in_child(&s);
  clew_run_free(run);
  clew_plan_free(plan);
  clew_model_free(model);
  end(&f);
}

static void test_check(clew_dtype dtype) {
  fixture f;
  begin(&f, dtype);
  add(&f, CLEW_WEIGHT_W_K, 0, wavy, true); /* between its values lie NaN bytes */
  CHECK(clew_tensor_check(&f.tensors[0], dtype) == -1);
  void *data = clew_slab_data(f.slabs[0]);
  put(data, 2 * 13, INFINITY, dtype);
  CHECK(clew_tensor_check(&f.tensors[0], dtype) == 13);
  put(data, 2 * 6, NAN, dtype);
  CHECK(clew_tensor_check(&f.tensors[0], dtype) == 6);
  end(&f);
}

/* ---- How products are cut ------------------------------------------------------------------------------------- */

/* Scratch memory is planned for the largest tile; a rest so narrow that another kernel multiplies it would let the
 * number of threads change bits. */
static void test_tiles(void) {
  static const size_t sides[] = {1,   8,   20,   33,   256,  257,  511,  513,  700,
                                 785, 816, 1000, 1024, 1025, 2304, 4097, 5120, 50257};
  const size_t n_sides = sizeof sides / sizeof *sides;
  for (size_t i = 0; i < n_sides; i++)
    for (size_t j = 0; j < n_sides; j++) {
      const size_t m = sides[i], n = sides[j];
      const clew_tiling most = clew_tile(m, n, 0), one = clew_tile(m, n, 1);
      for (size_t threads = 1; threads <= 64; threads++) {
        const clew_tiling t = clew_tile(m, n, threads);
        const bool covers = (t.n_rows - 1) * t.rows < m && m <= t.n_rows * t.rows && (t.n_cols - 1) * t.cols < n &&
                            n <= t.n_cols * t.cols;
        CHECK(covers && t.rows <= most.rows && t.cols <= most.cols, "%zu x %zu, %zu threads: %zu x %zu of %zu x %zu", m,
              n, threads, t.n_rows, t.n_cols, t.rows, t.cols);
        const size_t last_rows = m - (t.n_rows - 1) * t.rows, last_cols = n - (t.n_cols - 1) * t.cols;
        CHECK(m <= 32 || ((t.rows == one.rows || last_rows >= 64) && (t.cols == one.cols || last_cols >= 64)),
              "%zu x %zu, %zu threads: a rest of %zu x %zu", m, n, threads, last_rows, last_cols);
      }
    }
}

int main(void) {
  test_tiles();
  for (int kind = 0; kind < 2; kind++) {
    const clew_dtype dtype = kind ? CLEW_FLOAT64 : CLEW_FLOAT32;
    static const int32_t windows[] = {0, 1, 3, 64, 65, 700};
    for (size_t w = 0; w < sizeof windows / sizeof *windows; w++)
      for (int captured = 0; captured < 2; captured++) {
        test_uniform_attention(dtype, windows[w], captured, CLEW_LOGITS_ALL);
        test_uniform_attention(dtype, windows[w], captured, CLEW_LOGITS_LAST);
      }
    for (int form = 0; form < 4; form++)
      test_linear_attention(dtype, form & 1, form & 2, false);
    test_linear_attention(dtype, false, false, true);
    test_linear_attention(dtype, false, true, true);
    test_norm_mlp_and_loss(dtype);
    test_out_of_memory(dtype);
    test_refused_models(dtype);
    test_refused_requests(dtype);
    test_plan_counts(dtype);
    test_threads(dtype);
    test_cancel(dtype);
    test_fork(dtype);
    test_check(dtype);
  }
  return finish("test_engine");
}
