# For the scripts here that need a model on a disk; sourced, after tools/common.sh. The caller sets
# `cadre` and `log_dir`.

# make_model DIR HIDDEN INTERMEDIATE LAYERS HEADS: DIR/model, a llama of random weights in bf16 with 4 KV
# heads and a vocabulary of 2,048.
make_model() {
  local dir=$1
  say "making a model in $dir"
  python3 -c 'import random
random.seed(1)
words = ["".join(random.choices("etaoinshr", k=random.randint(2, 7))) for _ in range(2000)]
for _ in range(400): print(" ".join(random.choices(words, k=200)) + "\n")' >"$dir/text.txt"
  run_logged tokenizer "$cadre" tokenizer train --data "$dir/text.txt" --vocab-size 2048 --output "$dir/tokenizer"
  python3 bench/random_model.py "$dir/model.part" 2048 "$2" "$3" "$4" "$5" 4
  cp "$dir"/tokenizer/* "$dir/model.part/"
  mv "$dir/model.part" "$dir/model"
}
