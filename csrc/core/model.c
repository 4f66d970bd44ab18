/* Checking a configuration and a table of weights, and turning them into what the engine multiplies. */
#include "model.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- Messages that list several things ---------------------------------------------------------------------- */

typedef struct clew_text {
  char data[900];
  size_t length;
  size_t left_out;
} clew_text;

__attribute__((format(printf, 2, 3))) static void text_add(clew_text *text, const char *format, ...) {
  char item[160];
  va_list args;
  va_start(args, format);
  const int n = vsnprintf(item, sizeof item, format, args);
  va_end(args);
  const size_t length = n < 0 ? 0 : strlen(item);
  if (text->length + length + 3 > sizeof text->data) {
    text->left_out++;
    return;
  }
  if (text->length > 0) {
    memcpy(text->data + text->length, "; ", 2);
    text->length += 2;
  }
  memcpy(text->data + text->length, item, length + 1);
  text->length += length;
}

static void weight_name(char *name, size_t size, clew_weight weight, int32_t layer) {
  if (clew_weights[weight].layered) {
    snprintf(name, size, "blocks.%d.%s", layer, clew_weights[weight].name);
  } else {
    snprintf(name, size, "%s", clew_weights[weight].name);
  }
}

/* ---- Configuration ------------------------------------------------------------------------------------------ */

static clew_status check_config(const clew_config *c, clew_error *err) {
  const struct {
    const char *name;
    int32_t value, low;
  } sizes[] = {{"n_layers", c->n_layers, 0},
               {"d_model", c->d_model, 1},
               {"n_heads", c->n_heads, 1},
               {"n_kv_heads", c->n_kv_heads, 1},
               {"d_head", c->d_head, 1},
               {"n_ctx", c->n_ctx, 1},
               {"d_vocab", c->d_vocab, 1},
               {"d_vocab_out", c->d_vocab_out, 1},
               {"n_rot", c->n_rot, 0},
               {"pos_offset", c->pos_offset, 0},
               {"d_mlp", c->d_mlp, c->attn_only ? 0 : 1}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    if (sizes[i].value < sizes[i].low) {
      return clew_fail(err, CLEW_ERROR_VALUE, "config: %s = %d, must be at least %d", sizes[i].name, sizes[i].value,
                       sizes[i].low);
    }
  }
  if (c->n_heads % c->n_kv_heads != 0) {
    return clew_fail(err, CLEW_ERROR_VALUE, "config: n_heads = %d is no multiple of n_kv_heads = %d", c->n_heads,
                     c->n_kv_heads);
  }
  if (c->position == CLEW_POSITION_ROTARY &&
      (c->n_rot % 2 != 0 || c->n_rot > c->d_head || c->n_inv_freq < 1 || c->inv_freq == NULL)) {
    return clew_fail(err, CLEW_ERROR_VALUE, "config: n_rot = %d must be even, at most d_head = %d, with inv_freq",
                     c->n_rot, c->d_head);
  }
  for (int32_t l = 0; l < c->n_layers; l++) {
    if (c->layers[l].window < 0 ||
        (c->layers[l].rotary && (c->layers[l].rotary_base < 0 || c->layers[l].rotary_base >= c->n_inv_freq))) {
      return clew_fail(err, CLEW_ERROR_VALUE, "config: layer %d has window = %d, rotary_base = %d of %d", l,
                       c->layers[l].window, c->layers[l].rotary_base, c->n_inv_freq);
    }
  }
  if (c->shared_norm && !c->parallel) {
    return clew_fail(err, CLEW_ERROR_VALUE, "config: shared_norm needs parallel");
  }
  if (c->parallel && c->post_norms) {
    return clew_fail(err, CLEW_ERROR_UNSUPPORTED, "config: parallel blocks with post-norms");
  }
  if ((unsigned)c->act >= CLEW_N_ACT) {
    return clew_fail(err, CLEW_ERROR_VALUE, "config: unknown activation %d", (int)c->act);
  }
  if (!c->linear_attention && (!c->causal || c->exclude_self)) {
    return clew_fail(err, CLEW_ERROR_UNSUPPORTED, "config: softmax attention that is not causal or excludes itself");
  }
  if (c->exclude_last && (!c->linear_attention || c->causal)) {
    return clew_fail(err, CLEW_ERROR_UNSUPPORTED,
                     "config: exclude_last without linear attention over the whole prompt");
  }
  return CLEW_OK;
}

size_t clew_axis_length(const clew_config *c, char axis) {
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
  case 'c': /* W_pos may be longer than n_ctx */
    return (size_t)c->n_ctx + (size_t)c->pos_offset;
  default:
    return 1;
  }
}

static bool weight_required(const clew_config *c, clew_weight weight) {
  switch (weight) {
  case CLEW_WEIGHT_W_E:
  case CLEW_WEIGHT_W_U:
  case CLEW_WEIGHT_W_Q:
  case CLEW_WEIGHT_W_K:
  case CLEW_WEIGHT_W_V:
  case CLEW_WEIGHT_W_O:
    return true;
  case CLEW_WEIGHT_W_POS:
    return c->position == CLEW_POSITION_LEARNED;
  case CLEW_WEIGHT_W_IN:
  case CLEW_WEIGHT_W_OUT:
    return !c->attn_only;
  case CLEW_WEIGHT_W_GATE:
    return !c->attn_only && c->gated;
  default:
    return false;
  }
}

/* Would the engine use this weight at all? One that it would ignore is refused: nothing is silently dropped. */
static bool weight_used(const clew_config *c, clew_weight weight) {
  const bool norm = c->norm != CLEW_NORM_NONE, mlp = !c->attn_only;
  switch (weight) {
  case CLEW_WEIGHT_W_POS:
    return c->position == CLEW_POSITION_LEARNED;
  case CLEW_WEIGHT_LN1_W:
  case CLEW_WEIGHT_LN1_B:
    return norm;
  case CLEW_WEIGHT_LN2_W:
  case CLEW_WEIGHT_LN2_B:
    return norm && mlp && !c->shared_norm;
  case CLEW_WEIGHT_LN1_POST_W:
  case CLEW_WEIGHT_LN1_POST_B:
    return norm && c->post_norms;
  case CLEW_WEIGHT_LN2_POST_W:
  case CLEW_WEIGHT_LN2_POST_B:
    return norm && c->post_norms && mlp;
  case CLEW_WEIGHT_LN_FINAL_W:
  case CLEW_WEIGHT_LN_FINAL_B:
    return norm && c->final_norm;
  case CLEW_WEIGHT_Q_NORM_W:
  case CLEW_WEIGHT_K_NORM_W:
    return c->qk_norm;
  case CLEW_WEIGHT_W_GATE:
  case CLEW_WEIGHT_B_GATE:
    return mlp && c->gated;
  case CLEW_WEIGHT_W_IN:
  case CLEW_WEIGHT_B_IN:
  case CLEW_WEIGHT_W_OUT:
  case CLEW_WEIGHT_B_OUT:
    return mlp;
  default:
    return true;
  }
}

/* ---- Weights ------------------------------------------------------------------------------------------------ */

static void *own(clew_model *model, size_t bytes) {
  if (model->n_owned == model->owned_room) {
    const size_t room = model->owned_room ? 2 * model->owned_room : 16;
    clew_slab **grown = clew_resize(model->owned, room, sizeof *grown);
    if (grown == NULL) {
      return NULL;
    }
    model->owned = grown;
    model->owned_room = room;
  }
  clew_slab *slab = clew_slab_new(bytes);
  if (slab == NULL) {
    return NULL;
  }
  model->owned[model->n_owned++] = slab;
  return clew_slab_data(slab);
}

/* Copies a tensor to classic order. out: [shape], contiguous */
static void pack(void *out, const clew_tensor *t, size_t item) {
  const size_t s1 = t->n_dims > 1 ? t->shape[1] : 1, s2 = t->n_dims > 2 ? t->shape[2] : 1;
  const ptrdiff_t t1 = t->n_dims > 1 ? t->strides[1] : 0, t2 = t->n_dims > 2 ? t->strides[2] : 0;
  char *to = out;
  for (size_t i = 0; i < t->shape[0]; i++) {
    for (size_t j = 0; j < s1; j++) {
      for (size_t k = 0; k < s2; k++, to += item) {
        const ptrdiff_t at = (ptrdiff_t)i * t->strides[0] + (ptrdiff_t)j * t1 + (ptrdiff_t)k * t2;
        memcpy(to, (const char *)t->data + at * (ptrdiff_t)item, item);
      }
    }
  }
}

static size_t tensor_size(const clew_tensor *t) {
  size_t n = 1;
  for (int32_t i = 0; i < t->n_dims; i++) {
    n *= t->shape[i];
  }
  return n;
}

static bool is_contiguous(const clew_tensor *t) {
  ptrdiff_t stride = 1;
  for (int32_t i = t->n_dims - 1; i >= 0; i--) {
    if (t->shape[i] != 1 && t->strides[i] != stride) {
      return false;
    }
    stride *= (ptrdiff_t)t->shape[i];
  }
  return true;
}

static bool to_vector(const void **out, clew_model *model, const clew_tensor *t) {
  if (t == NULL || is_contiguous(t)) {
    *out = t ? t->data : NULL;
    return true;
  }
  const size_t item = clew_dtype_size(model->config.dtype);
  void *data = own(model, tensor_size(t) * item);
  if (data == NULL) {
    return false;
  }
  pack(data, t, item);
  *out = data;
  return true;
}

/* What a product needs of a layout: positive strides, one of them 1. */
static bool is_multipliable(size_t k, size_t n, ptrdiff_t rs, ptrdiff_t cs) {
  return (rs > 0 || k == 1) && (cs > 0 || n == 1) && (rs == 1 || cs == 1);
}

/* Axes that lie one behind the other count as one: [k, n], [g, k, n] (columns side by side) or [h, e, n] (rows). */
static bool to_matrix(clew_matrix *out, clew_model *model, const clew_tensor *t, bool heads_are_columns) {
  memset(out, 0, sizeof *out);
  if (t == NULL) {
    return true;
  }
  const size_t *shape = t->shape;
  const ptrdiff_t *strides = t->strides;
  clew_matrix m = {.data = t->data, .groups = 1};
  bool fits = true;
  if (t->n_dims == 2) {
    m.k = shape[0], m.n = shape[1], m.rs = strides[0], m.cs = strides[1];
  } else if (heads_are_columns) { /* [heads, d, e] */
    m.k = shape[1], m.rs = strides[1], m.cs = strides[2];
    if (shape[0] == 1 || strides[0] == strides[2] * (ptrdiff_t)shape[2]) {
      m.n = shape[0] * shape[2];
    } else {
      m.n = shape[2], m.groups = shape[0], m.gs = strides[0];
    }
  } else { /* [heads, e, d] */
    m.k = shape[0] * shape[1], m.n = shape[2], m.rs = strides[1], m.cs = strides[2];
    fits = shape[0] == 1 || strides[0] == strides[1] * (ptrdiff_t)shape[1];
  }
  /* one head of one column: any stride will do, so take the one that products like */
  if (m.n == 1 && m.rs != 1) {
    m.cs = 1;
  }
  if (m.k == 1 && m.cs != 1) {
    m.rs = 1;
  }
  if (!fits || !is_multipliable(m.k, m.n, m.rs, m.cs)) {
    const size_t item = clew_dtype_size(model->config.dtype);
    void *data = own(model, tensor_size(t) * item);
    if (data == NULL) {
      return false;
    }
    pack(data, t, item);
    m.data = data, m.cs = 1;
    if (t->n_dims == 3 && heads_are_columns) {
      m.n = shape[2], m.groups = shape[0], m.rs = (ptrdiff_t)shape[2], m.gs = (ptrdiff_t)(shape[1] * shape[2]);
    } else {
      m.rs = (ptrdiff_t)shape[t->n_dims - 1];
    }
  }
  *out = m;
  return true;
}

static bool to_norm(clew_norm_weights *out, clew_model *model, const clew_tensor *w, const clew_tensor *b) {
  return to_vector(&out->w, model, w) && to_vector(&out->b, model, b);
}

static clew_status check_tensors(const clew_tensor **table, const clew_config *c, const clew_tensor *tensors,
                                 size_t n_tensors, clew_error *err) {
  char name[96];
  clew_text wrong = {.length = 0};
  for (size_t i = 0; i < n_tensors; i++) {
    const clew_tensor *t = &tensors[i];
    const clew_weight_info *info = &clew_weights[t->weight];
    weight_name(name, sizeof name, t->weight, t->layer);
    if (t->layer < 0 || t->layer >= (info->layered ? c->n_layers : 1)) {
      text_add(&wrong, "%s: there is no such layer, n_layers = %d", name, c->n_layers);
      continue;
    }
    if (!weight_used(c, t->weight)) {
      text_add(&wrong, "%s: this configuration has no place for it", name);
      continue;
    }
    const int32_t n_dims = (int32_t)strlen(info->axes);
    bool fits = t->n_dims == n_dims && t->data != NULL;
    char expected[64] = "", found[80] = "";
    for (int32_t d = 0; d < n_dims; d++) {
      const size_t length = clew_axis_length(c, info->axes[d]);
      fits = fits && (t->shape[d] == length ||
                      (info->axes[d] == 'c' && t->shape[d] > (size_t)c->pos_offset)); /* any number of positions */
      const size_t at = strlen(expected);
      snprintf(expected + at, sizeof expected - at, "%s%zu", d ? ", " : "", length);
    }
    for (int32_t d = 0; d < t->n_dims && d < 3; d++) {
      const size_t at = strlen(found);
      snprintf(found + at, sizeof found - at, "%s%zu", d ? ", " : "", t->shape[d]);
    }
    if (!fits) {
      text_add(&wrong, "%s has shape [%s], expected [%s]", name, found, expected);
      continue;
    }
    table[(size_t)t->weight * (size_t)(c->n_layers + 1) + (size_t)t->layer] = t;
  }
  for (int weight = 0; weight < CLEW_N_WEIGHTS; weight++) {
    const int32_t n = clew_weights[weight].layered ? c->n_layers : 1;
    for (int32_t l = 0; l < n && weight_required(c, (clew_weight)weight); l++) {
      if (table[(size_t)weight * (size_t)(c->n_layers + 1) + (size_t)l] == NULL) {
        weight_name(name, sizeof name, (clew_weight)weight, l);
        text_add(&wrong, "%s is missing", name);
      }
    }
  }
  if (wrong.length > 0) {
    char more[48] = "";
    if (wrong.left_out > 0) {
      snprintf(more, sizeof more, "; and %zu more", wrong.left_out);
    }
    return clew_fail(err, CLEW_ERROR_SHAPE, "weights: %s%s", wrong.data, more);
  }
  return CLEW_OK;
}

clew_status clew_model_new(clew_model **out, const clew_config *config, const clew_tensor *tensors, size_t n_tensors,
                           clew_error *err) {
  *out = NULL;
  clew_status status = check_config(config, err);
  if (status != CLEW_OK) {
    return status;
  }
  const size_t n_layers = (size_t)config->n_layers;
  const clew_tensor **table = clew_alloc((size_t)CLEW_N_WEIGHTS * (n_layers + 1), sizeof *table);
  clew_model *model = clew_alloc(1, sizeof *model);
  if (table == NULL || model == NULL) {
    clew_free(model);
    model = NULL;
    status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for a model of %zu layers", n_layers);
    goto done;
  }
  pthread_mutex_init(&model->rotary_lock, NULL);
  model->config = *config;
  model->config.layers = NULL;
  model->config.inv_freq = NULL;
  status = check_tensors(table, config, tensors, n_tensors, err);
  if (status != CLEW_OK) {
    goto done;
  }
  clew_layer_config *layers = clew_alloc(n_layers ? n_layers : 1, sizeof *layers);
  const size_t n_freq = (size_t)(config->n_inv_freq * (config->n_rot / 2));
  double *inv_freq = clew_alloc(n_freq ? n_freq : 1, sizeof *inv_freq);
  model->config.layers = layers;
  model->config.inv_freq = inv_freq;
  model->blocks = clew_alloc(n_layers ? n_layers : 1, sizeof *model->blocks);
  bool ok = layers != NULL && inv_freq != NULL && model->blocks != NULL;
  if (ok && n_layers > 0) {
    memcpy(layers, config->layers, n_layers * sizeof *layers);
  }
  if (ok && n_freq > 0) {
    memcpy(inv_freq, config->inv_freq, n_freq * sizeof *inv_freq);
  }
#define TENSOR(id, l) table[(size_t)CLEW_WEIGHT_##id * (n_layers + 1) + (l)]
  ok = ok && to_matrix(&model->W_E, model, TENSOR(W_E, 0), false) &&
       to_matrix(&model->W_pos, model, TENSOR(W_POS, 0), false) &&
       to_norm(&model->ln_final, model, TENSOR(LN_FINAL_W, 0), TENSOR(LN_FINAL_B, 0)) &&
       to_matrix(&model->W_U, model, TENSOR(W_U, 0), false) && to_vector(&model->b_U, model, TENSOR(B_U, 0));
  for (size_t l = 0; l < n_layers && ok; l++) {
    clew_block *b = &model->blocks[l];
    ok = to_norm(&b->ln1, model, TENSOR(LN1_W, l), TENSOR(LN1_B, l)) &&
         to_norm(&b->ln1_post, model, TENSOR(LN1_POST_W, l), TENSOR(LN1_POST_B, l)) &&
         to_norm(&b->ln2, model, TENSOR(LN2_W, l), TENSOR(LN2_B, l)) &&
         to_norm(&b->ln2_post, model, TENSOR(LN2_POST_W, l), TENSOR(LN2_POST_B, l)) &&
         to_norm(&b->q_norm, model, TENSOR(Q_NORM_W, l), NULL) &&
         to_norm(&b->k_norm, model, TENSOR(K_NORM_W, l), NULL) && to_matrix(&b->W_Q, model, TENSOR(W_Q, l), true) &&
         to_matrix(&b->W_K, model, TENSOR(W_K, l), true) && to_matrix(&b->W_V, model, TENSOR(W_V, l), true) &&
         to_matrix(&b->W_O, model, TENSOR(W_O, l), false) && to_matrix(&b->W_gate, model, TENSOR(W_GATE, l), false) &&
         to_matrix(&b->W_in, model, TENSOR(W_IN, l), false) && to_matrix(&b->W_out, model, TENSOR(W_OUT, l), false) &&
         to_vector(&b->b_Q, model, TENSOR(B_Q, l)) && to_vector(&b->b_K, model, TENSOR(B_K, l)) &&
         to_vector(&b->b_V, model, TENSOR(B_V, l)) && to_vector(&b->b_O, model, TENSOR(B_O, l)) &&
         to_vector(&b->b_gate, model, TENSOR(B_GATE, l)) && to_vector(&b->b_in, model, TENSOR(B_IN, l)) &&
         to_vector(&b->b_out, model, TENSOR(B_OUT, l));
  }
#undef TENSOR
  if (!ok) {
    status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for the weights that need another layout");
  }

done:
  clew_free(table);
  if (status != CLEW_OK) {
    clew_model_free(model);
    return status;
  }
  *out = model;
  return CLEW_OK;
}

void clew_model_free(clew_model *model) {
  if (model == NULL) {
    return;
  }
  for (size_t i = 0; i < model->n_owned; i++) {
    clew_slab_release(model->owned[i]);
  }
  for (clew_rotary_table *t = model->rotary, *older; t != NULL; t = older) {
    older = t->older;
    clew_free(t->cosine);
    clew_free(t->sine);
    clew_free(t);
  }
  pthread_mutex_destroy(&model->rotary_lock);
  clew_free(model->owned);
  clew_free(model->blocks);
  clew_free((void *)model->config.layers);
  clew_free((void *)model->config.inv_freq);
  clew_free(model);
}

const clew_config *clew_model_config(const clew_model *model) { return &model->config; }

size_t clew_model_n_packed(const clew_model *model) { return model->n_owned; }

bool clew_model_has_site(const clew_model *model, clew_site site) {
  const clew_config *c = &model->config;
  const bool norm = c->norm != CLEW_NORM_NONE;
  switch (site) {
  case CLEW_POS_EMBED:
    return c->position == CLEW_POSITION_LEARNED;
  case CLEW_LN1_SCALE:
  case CLEW_LN1_NORMALIZED:
  case CLEW_LN1_OUT:
    return norm;
  case CLEW_Q_NORMED:
  case CLEW_K_NORMED:
    return c->qk_norm;
  case CLEW_ROT_Q:
  case CLEW_ROT_K:
    return c->position == CLEW_POSITION_ROTARY;
  case CLEW_LN1_POST_SCALE:
  case CLEW_LN1_POST_NORMALIZED:
  case CLEW_LN1_POST_OUT:
    return norm && c->post_norms;
  case CLEW_RESID_MID:
    return !c->parallel && !c->attn_only;
  case CLEW_MLP_IN:
  case CLEW_MLP_PRE:
  case CLEW_MLP_POST:
  case CLEW_MLP_OUT:
    return !c->attn_only;
  case CLEW_MLP_PRE_LINEAR:
    return !c->attn_only && c->gated;
  case CLEW_LN2_SCALE:
  case CLEW_LN2_NORMALIZED:
  case CLEW_LN2_OUT:
    return norm && !c->attn_only && !c->shared_norm;
  case CLEW_LN2_POST_SCALE:
  case CLEW_LN2_POST_NORMALIZED:
  case CLEW_LN2_POST_OUT:
    return norm && c->post_norms && !c->attn_only;
  case CLEW_LN_FINAL_SCALE:
  case CLEW_LN_FINAL_NORMALIZED:
  case CLEW_LN_FINAL_OUT:
    return norm && c->final_norm;
  default:
    return true;
  }
}

const clew_rotary_table *clew_model_rotary(const clew_model *model, size_t n_pos) {
  clew_model *m = (clew_model *)model; /* a cache behind a lock: the model stays what it is */
  const clew_config *c = &model->config;
  const size_t half = (size_t)c->n_rot / 2, kinds = (size_t)c->n_inv_freq;
  pthread_mutex_lock(&m->rotary_lock);
  clew_rotary_table *table = m->rotary;
  if (table == NULL || table->n_pos < n_pos) {
    size_t room = 64;
    while (room < n_pos) {
      room *= 2;
    }
    const size_t item = clew_dtype_size(c->dtype), n = kinds * room * half;
    table = clew_alloc(1, sizeof *table);
    void *cosine = clew_alloc(n ? n : 1, item), *sine = clew_alloc(n ? n : 1, item);
    if (table == NULL || cosine == NULL || sine == NULL) {
      clew_free(table);
      clew_free(cosine);
      clew_free(sine);
      table = NULL;
      goto done;
    }
    for (size_t i = 0; i < n; i++) {
      const size_t kind = i / (room * half), pos = i / half % room, pair = i % half;
      const double angle = (double)pos * c->inv_freq[kind * half + pair];
      if (c->dtype == CLEW_FLOAT32) {
        ((float *)cosine)[i] = (float)cos(angle), ((float *)sine)[i] = (float)sin(angle);
      } else {
        ((double *)cosine)[i] = cos(angle), ((double *)sine)[i] = sin(angle);
      }
    }
    *table = (clew_rotary_table){.older = m->rotary, .n_pos = room, .cosine = cosine, .sine = sine};
    m->rotary = table;
  }
done:
  pthread_mutex_unlock(&m->rotary_lock);
  return table;
}
