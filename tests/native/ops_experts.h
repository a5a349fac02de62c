/* ops_experts.h - cases of mixtures of experts, for ops.h. */
#ifndef OPS_EXPERTS_H
#define OPS_EXPERTS_H

/* ---- a mixture of experts ---- */

static void make_route(test_case *t, const int *s) { /* T, E, k */
    operand *weights = add(t, FB_F32, s[0], s[2], OUT), *chosen = add(t, FB_I32, s[0], s[2], OUT), *x = add(t, ACT, s[0], s[1], 0);
    spread(x, 5);
    for (int r = 0; r < s[0]; r++) {
        double sum = 0;
        for (int c = 0; c < s[1]; c++) {
            int rank = 0;
            for (int i = 0; i < s[1]; i++) rank += AT(x, r, i) > AT(x, r, c) || (AT(x, r, i) == AT(x, r, c) && i < c);
            if (rank < s[2]) AT(chosen, r, rank) = c;
        }
        for (int j = 0; j < s[2]; j++) sum += exp(AT(x, r, (int)AT(chosen, r, j)));
        for (int j = 0; j < s[2]; j++) AT(weights, r, j) = exp(AT(x, r, (int)AT(chosen, r, j))) / sum;
    }
}

static void choose(operand *chosen, int experts) { /* different ones for each token, the first ones more often */
    for (int r = 0; r < chosen->view.rows; r++)
        for (int j = 0; j < chosen->view.cols; j++) {
            int c = below(below(experts) + 1), again = 1;
            while (again) {
                again = 0;
                for (int i = 0; i < j; i++) again |= AT(chosen, r, i) == c;
                c = again ? (c + 1) % experts : c;
            }
            set(chosen, r, j, c);
        }
}

static void make_route_grad(test_case *t, const int *s) {
    operand *dx = add(t, ACT, s[0], s[1], OUT), *dw = add(t, FB_F32, s[0], s[2], 0), *weights = add(t, FB_F32, s[0], s[2], 0);
    operand *chosen = add(t, FB_I32, s[0], s[2], 0);
    choose(chosen, s[1]);
    for (int r = 0; r < s[0]; r++) {
        double mean = 0;
        for (int c = 0; c < s[1]; c++) AT(dx, r, c) = 0;
        for (int j = 0; j < s[2]; j++) mean += AT(weights, r, j) * AT(dw, r, j);
        for (int j = 0; j < s[2]; j++) AT(dx, r, (int)AT(chosen, r, j)) = AT(weights, r, j) * (AT(dw, r, j) - mean);
    }
}

static void put_order(operand *order, const operand *chosen, int experts) {
    int at = experts + 1;
    for (int e = 0; e <= experts; e++) {
        set(order, 0, e, at);
        for (int i = 0; i < chosen->view.rows * chosen->view.cols; i++)
            if (chosen->d[i] == e) set(order, 0, at++, i);
    }
}

static void make_order(test_case *t, const int *s) { /* T, E, k, load? */
    operand *order = add(t, FB_I32, 1, s[1] + 1 + s[0] * s[2], OUT), *load = s[3] ? add(t, FB_F32, 1, s[1], OUT) : absent(t);
    operand *chosen = add(t, FB_I32, s[0], s[2], 0), wanted = *order;
    t->launch.attr.experts = s[1];
    choose(chosen, s[1]);
    wanted.image = malloc(order->bytes + 64);
    put_order(&wanted, chosen, s[1]);
    free(wanted.image);
    for (int i = 0; i < s[0] * s[2] && PRESENT(load); i++) AT(load, 0, (int)chosen->d[i]) += 1;
}

/* Experts and tokens beside those of the launch, and an order of all of them: what tiles are. */
static operand *add_order(test_case *t, const int *s) { /* T, N, K, R, E, k, by slot? */
    fb_attr *a = &t->launch.attr;
    int experts = s[4] + (a->first = s[4] > 1 ? below(3) : 0), tokens = s[0] + (a->token = s[0] > 3 ? below(3) : 0) + below(2);
    operand chosen = {.view = {.type = FB_I32, .rows = tokens, .cols = a->slots = s[5], .ld = s[5]}};
    chosen.image = calloc((size_t)tokens * s[5], 4), chosen.d = calloc((size_t)tokens * s[5], 8);
    choose(&chosen, experts);
    operand *order = add(t, FB_I32, 1, experts + 1 + tokens * s[5], 0);
    put_order(order, &chosen, experts);
    free(chosen.image), free(chosen.d);
    return order;
}

typedef struct expert_slot {
    int e, row, j, all; /* of the launch: -1 outside; its token's row, its number, and the expert's among all */
} expert_slot;

static expert_slot slot_of(const test_case *t, operand *order, const int *s, int i) {
    const fb_attr *a = &t->launch.attr;
    int all = 0, slot = (int)AT(order, 0, i);
    while (AT(order, 0, all + 1) <= i) all++;
    expert_slot at = {all - a->first, slot / s[5] - a->token, slot % s[5], all};
    if (at.e >= s[4] || at.row < 0 || at.row >= s[0]) at.e = -1;
    return at;
}

static int experts_of(operand *order) { return (int)AT(order, 0, 0) - 1; }

static void make_experts(test_case *t, const int *s) {
    operand *y = add(t, ACT, s[0], s[1] * s[5], OUT), *x = add(t, ACT, s[0], s[2] * (s[6] ? s[5] : 1), 0);
    operand *w = add(t, t->weight, s[4] * s[1], s[2], 0), *order = add_order(t, s);
    operand *bias = add_maybe(t, below(2), FB_F32, experts_of(order), s[1]), *u = add_maybe(t, s[3], ACT, s[0], s[3] * s[5]);
    operand *b = add_maybe(t, s[3], FB_F32, experts_of(order) * s[1], s[3]);
    t->launch.attr.scale = below(2) ? 1 : 0.75f;
    if (x->view.type == FB_BF16 || y->view.type == FB_BF16) t->coarse = 8e-3;
    for (int i = experts_of(order) + 1; i < order->view.cols; i++) {
        expert_slot at = slot_of(t, order, s, i);
        for (int n = 0; n < s[1] && at.e >= 0; n++) {
            double sum = 0, low = 0;
            for (int k = 0; k < s[2]; k++) sum += AT(x, at.row, (s[6] ? at.j * s[2] : 0) + k) * AT(w, at.e * s[1] + n, k);
            for (int k = 0; k < s[3]; k++) low += AT(u, at.row, at.j * s[3] + k) * AT(b, at.all * s[1] + n, k);
            AT(y, at.row, at.j * s[1] + n) = t->launch.attr.scale * sum + low + (PRESENT(bias) ? AT(bias, at.all, n) : 0);
        }
    }
}

static void make_experts_dx(test_case *t, const int *s) {
    operand *dx = add(t, ACT, s[0], s[2] * s[5], OUT), *dy = add(t, ACT, s[0], s[1] * s[5], 0);
    operand *w = add(t, t->weight, s[4] * s[1], s[2], 0), *order = add_order(t, s), *u = add_maybe(t, s[3], ACT, s[0], s[3] * s[5]);
    operand *a = add_maybe(t, s[3], FB_F32, experts_of(order) * s[3], s[2]), *acc = add_maybe(t, below(2), ACT, s[0], s[2] * s[5]);
    t->launch.attr.scale = below(2) ? 1 : 0.75f;
    if (dy->view.type == FB_BF16 || dx->view.type == FB_BF16) t->coarse = 8e-3;
    for (int i = experts_of(order) + 1; i < order->view.cols; i++) {
        expert_slot at = slot_of(t, order, s, i);
        for (int k = 0; k < s[2] && at.e >= 0; k++) {
            double sum = 0, low = 0;
            for (int n = 0; n < s[1]; n++) sum += AT(dy, at.row, at.j * s[1] + n) * AT(w, at.e * s[1] + n, k);
            for (int r = 0; r < s[3]; r++) low += AT(u, at.row, at.j * s[3] + r) * AT(a, at.all * s[3] + r, k);
            AT(dx, at.row, at.j * s[2] + k) = t->launch.attr.scale * sum + low + (PRESENT(acc) ? AT(acc, at.row, at.j * s[2] + k) : 0);
        }
    }
}

static void make_experts_dw(test_case *t, const int *s) {
    operand *dw = add(t, FB_F32, s[4] * s[1], s[2], OUT), *dy = add(t, ACT, s[0], s[1] * s[5], 0);
    operand *x = add(t, ACT, s[0], s[2] * (s[6] ? s[5] : 1), 0), *order = add_order(t, s);
    t->launch.attr.scale = 0.75f;
    if (dy->view.type != x->view.type) t->coarse = 8e-3;
    for (int i = experts_of(order) + 1; i < order->view.cols; i++) {
        expert_slot at = slot_of(t, order, s, i);
        for (int n = 0; n < s[1] && at.e >= 0; n++)
            for (int k = 0; k < s[2]; k++)
                AT(dw, at.e * s[1] + n, k) += 0.75 * AT(dy, at.row, at.j * s[1] + n) * AT(x, at.row, (s[6] ? at.j * s[2] : 0) + k);
    }
}

static void make_combine(test_case *t, const int *s) { /* T, D, k, weights? */
    operand *y = add(t, ACT, s[0], s[1], OUT), *x = add(t, ACT, s[0], s[1] * s[2], 0), *w = add_maybe(t, s[3], FB_F32, s[0], s[2]);
    operand *acc = add_maybe(t, below(2), ACT, s[0], s[1]);
    for (int r = 0; r < s[0]; r++)
        for (int c = 0; c < s[1]; c++) {
            AT(y, r, c) = PRESENT(acc) ? AT(acc, r, c) : 0;
            for (int j = 0; j < s[2]; j++) AT(y, r, c) += (PRESENT(w) ? AT(w, r, j) : 1) * AT(x, r, j * s[1] + c);
        }
}

static void make_combine_grad(test_case *t, const int *s) { /* T, D, k */
    operand *dx = add(t, ACT, s[0], s[1] * s[2], OUT), *dw = add(t, FB_F32, s[0], s[2], OUT), *dy = add(t, ACT, s[0], s[1], 0);
    operand *x = add(t, ACT, s[0], s[1] * s[2], 0), *w = add(t, FB_F32, s[0], s[2], 0);
    for (int r = 0; r < s[0]; r++)
        for (int j = 0; j < s[2]; j++) {
            AT(dw, r, j) = 0;
            for (int c = 0; c < s[1]; c++) {
                AT(dx, r, j * s[1] + c) = AT(w, r, j) * AT(dy, r, c);
                AT(dw, r, j) += AT(dy, r, c) * AT(x, r, j * s[1] + c);
            }
        }
}
#endif
