/* operands.h - the operands of every op by name, in the order of the table in backend.h: linear.w is an operand of a launch
 * whose op is FB_OP_LINEAR. */
#ifndef FB_OPERANDS_H
#define FB_OPERANDS_H

#define fb_embed_views(X) X(y) X(w) X(ids)
#define fb_decode_views(X) X(y) X(w)
#define fb_rms_norm_views(X) X(y) X(x) X(w)
#define fb_rms_norm_dx_views(X) X(dx) X(dy) X(x) X(w) X(acc)
#define fb_rms_norm_dw_views(X) X(dw) X(dy) X(x)
#define fb_linear_views(X) X(y) X(x) X(w) X(bias) X(u) X(b) X(acc)
#define fb_linear_dx_views(X) X(dx) X(dy) X(w) X(u) X(a) X(acc)
#define fb_linear_dw_views(X) X(dw) X(dy) X(x)
#define fb_bias_db_views(X) X(db) X(dy)
#define fb_embed_dw_views(X) X(dw) X(dy) X(ids)
#define fb_rope_table_views(X) X(table) X(pos) X(inv_freq)
#define fb_rope_views(X) X(y) X(x) X(table) X(acc)
#define fb_attention_views(X) X(o) X(stats) X(q) X(k) X(v) X(range)
#define fb_attention_dq_views(X) X(dq) X(stats) X(q) X(k) X(v) X(o) X(dout) X(range)
#define fb_attention_dkv_views(X) X(dk) X(dv) X(q) X(k) X(v) X(stats) X(dout) X(range)
#define fb_conv_views(X) X(y) X(x) X(w) X(bias) X(range)
#define fb_conv_dx_views(X) X(dx) X(dy) X(w) X(range)
#define fb_conv_dw_views(X) X(dw) X(dy) X(x) X(range)
#define fb_delta_gates_views(X) X(gates) X(b) X(a) X(rate) X(range)
#define fb_delta_gates_grad_views(X) X(db) X(da) X(gates) X(b) X(a) X(rate)
#define fb_delta_views(X) X(o) X(states) X(q) X(k) X(v) X(gates) X(cache) X(at)
#define fb_delta_grad_views(X) X(dq) X(dk) X(dv) X(gates) X(q) X(k) X(v) X(states) X(dout)
#define fb_part_views(X) X(y) X(x) X(acc)
#define fb_glu_views(X) X(y) X(gate) X(up)
#define fb_glu_grad_views(X) X(dgate) X(dup) X(dy) X(gate) X(up)
#define fb_add_views(X) X(y) X(a) X(b)
#define fb_scale_views(X) X(y) X(x) X(acc)
#define fb_softcap_views(X) X(y) X(x)
#define fb_softcap_grad_views(X) X(dx) X(dy) X(y) X(acc)
#define fb_dropout_views(X) X(y) X(x) X(keys) X(acc)
#define fb_gather_views(X) X(y) X(x) X(index)
#define fb_scatter_views(X) X(y) X(x) X(index)
#define fb_xent_views(X) X(nll) X(logits) X(targets)
#define fb_append_views(X) X(cache) X(x) X(slots)
#define fb_zero_views(X) X(y)
#define fb_route_views(X) X(weights) X(chosen) X(logits)
#define fb_route_grad_views(X) X(dlogits) X(dweights) X(weights) X(chosen)
#define fb_order_views(X) X(order) X(load) X(chosen)
#define fb_experts_views(X) X(y) X(x) X(w) X(order) X(bias) X(u) X(b)
#define fb_experts_dx_views(X) X(dx) X(dy) X(w) X(order) X(u) X(a) X(acc)
#define fb_experts_dw_views(X) X(dw) X(dy) X(x) X(order)
#define fb_combine_views(X) X(y) X(x) X(weights) X(acc)
#define fb_combine_grad_views(X) X(dx) X(dweights) X(dy) X(x) X(weights)
#define fb_tally_views(X) X(record) X(nll)
#define fb_sumsq_views(X) X(partial) X(x)
#define fb_norm_views(X) X(record) X(partial) X(hyper)
#define fb_adamw_views(X) X(p) X(m) X(v) X(g) X(hyper) X(record)
#define fb_sgd_views(X) X(p) X(m) X(g) X(hyper) X(record)

#define FB_VIEWS_OF_OPS(X) \
    X(embed) X(decode) X(rms_norm) X(rms_norm_dx) X(rms_norm_dw) X(linear) X(linear_dx) X(linear_dw) X(bias_db) \
    X(embed_dw) X(rope_table) X(rope) X(attention) X(attention_dq) X(attention_dkv) X(conv) X(conv_dx) X(conv_dw) \
    X(glu) X(glu_grad) X(add) X(scale) X(softcap) X(softcap_grad) X(dropout) X(gather) X(scatter) X(xent) X(append) X(zero) \
    X(route) X(route_grad) X(order) X(experts) X(experts_dx) X(experts_dw) X(combine) X(combine_grad) \
    X(delta_gates) X(delta_gates_grad) X(delta) X(delta_grad) X(part) \
    X(tally) X(sumsq) X(norm) X(adamw) X(sgd)
#endif
