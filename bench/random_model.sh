# For the scripts here that need a model on a disk; sourced, after tools/common.sh. The caller sets
# `cadre` and `log_dir`.

# make_model DIR HIDDEN INTERMEDIATE LAYERS HEADS: DIR/model, a llama trained for two steps, in bf16,
# vocabulary 2,048.
make_model() {
  local dir=$1
  say "making a model in $dir"
  python3 -c 'import random
random.seed(1)
words = ["".join(random.choices("etaoinshr", k=random.randint(2, 7))) for _ in range(2000)]
for _ in range(400): print(" ".join(random.choices(words, k=200)) + "\n")' >"$dir/text.txt"
  run_logged tokenizer "$cadre" tokenizer train --data "$dir/text.txt" --vocab-size 2048 --output "$dir/tokenizer"
  run_logged data "$cadre" data build --tokenizer "$dir/tokenizer" --input "$dir/text.txt" --append-eos --output "$dir/tokens"
  cat >"$dir/job.yaml" <<JOB
model: {model_type: llama, vocab_size: 2048, hidden_size: $2, intermediate_size: $3, num_hidden_layers: $4,
        num_attention_heads: $5, num_key_value_heads: 4, max_position_embeddings: 4096, tie_word_embeddings: true}
tokenizer: $dir/tokenizer
data: {seq_len: 128, sources: [{path: $dir/tokens}]}
global_batch_size: 4
micro_batch_size: 4
train_steps: 2
lr_schedule: {warmup_steps: 1}
eval: {interval: 0}
log: {tensorboard: false}
JOB
  run_logged train "$cadre" train -c "$dir/job.yaml" --output "$dir/run"
  run_logged export "$cadre" checkpoint convert "$dir/run/checkpoints/$(readlink "$dir/run/checkpoints/latest")" --to "$dir/model"
  rm -r "$dir/run" "$dir"/tokens.*
}
