/* Errors, and the tables made from sites.def and weights.def. */
#include "test.h"

static void test_fail(void) {
  clew_error err;
  memset(&err, 'x', sizeof err);
  CHECK(clew_fail(&err, CLEW_ERROR_SHAPE, "W_Q is [%d, %s]", 3, "four") == CLEW_ERROR_SHAPE);
  CHECK(err.status == CLEW_ERROR_SHAPE && strcmp(err.message, "W_Q is [3, four]") == 0, "%s", err.message);
  CHECK(clew_fail(NULL, CLEW_ERROR_TOKEN, "%d", 1) == CLEW_ERROR_TOKEN);

  char text[3000];
  memset(text, 'a', sizeof text - 1);
  text[sizeof text - 1] = '\0';
  clew_fail(&err, CLEW_ERROR_VALUE, "%s", text);
  CHECK(strlen(err.message) == sizeof err.message - 1, "%zu", strlen(err.message));
}

static void test_sites(void) {
  CHECK(CLEW_N_SITES == sizeof clew_sites / sizeof *clew_sites);
  for (int i = 0; i < CLEW_N_SITES; i++) {
    const clew_site_info *site = &clew_sites[i];
    CHECK(site->id && site->name && site->axes && site->meaning && site->meaning[0], "site %d", i);
    CHECK(strspn(site->axes, "bpkdhgefv1") == strlen(site->axes) && site->axes[0] == 'b', "%s: %s", site->id,
          site->axes);
    CHECK(strlen(site->axes) >= 3 && strlen(site->axes) <= 4, "%s: %s", site->id, site->axes);
    for (int j = 0; j < i; j++)
      CHECK(strcmp(site->name, clew_sites[j].name) != 0 && strcmp(site->id, clew_sites[j].id) != 0, "%s", site->name);
  }
  const clew_site_info *z = &clew_sites[CLEW_Z], *logits = &clew_sites[CLEW_LOGITS];
  CHECK(strcmp(z->id, "Z") == 0 && strcmp(z->name, "attn.hook_z") == 0 && strcmp(z->axes, "bphe") == 0 && z->layered);
  CHECK(strcmp(logits->name, "logits") == 0 && !logits->layered);
}

static void test_weights(void) {
  for (int i = 0; i < CLEW_N_WEIGHTS; i++) {
    const clew_weight_info *weight = &clew_weights[i];
    CHECK(weight->name && weight->axes, "weight %d", i);
    CHECK(strspn(weight->axes, "cdhgefvu") == strlen(weight->axes) && strlen(weight->axes) >= 1 &&
              strlen(weight->axes) <= 3,
          "%s: %s", weight->name, weight->axes);
    for (int j = 0; j < i; j++)
      CHECK(strcmp(weight->name, clew_weights[j].name) != 0, "%s", weight->name);
  }
  const clew_weight_info *w = &clew_weights[CLEW_WEIGHT_W_O];
  CHECK(strcmp(w->name, "attn.W_O") == 0 && strcmp(w->axes, "hed") == 0 && w->layered);
  CHECK(!clew_weights[CLEW_WEIGHT_W_U].layered);
}

int main(void) {
  test_fail();
  test_sites();
  test_weights();
  return finish("test_status");
}
