#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/as_data.h"
#include "cli/commands.h"
#include "cli/compute_flags.h"
#include "cli/kv_cache_dtype.h"
#include "cli/model_folder.h"
#include "core/file.h"
#include "core/host_allocator.h"
#include "core/ops/elementwise.h"
#include "core/ops/linear_cross_entropy.h"
#include "core/safetensors.h"
#include "model/model.h"
#include "model/score.h"
#include "model/tokenizer.h"

namespace cadre::cli {
namespace {

using Json = nlohmann::ordered_json;

struct ScoreFlags {
  std::string model, text, logits;
  std::vector<int32_t> ids;
  std::string kv_cache_dtype = "auto";
  bool json = false;
  ComputeFlags compute;
};

absl::StatusOr<std::vector<int32_t>> ReadIds(const ScoreFlags& flags) {
  if (flags.ids.empty() == flags.text.empty()) {
    return InvalidArgument("--ids, --text: exactly one of them is needed");
  }
  if (!flags.ids.empty()) return flags.ids;
  CADRE_ASSIGN_OR_RETURN(std::string text, ReadFile(flags.text));
  if (!IsValidUtf8(text)) {
    return DataLoss("{}: not valid UTF-8 at byte {}", flags.text, ValidUtf8Prefix(text));
  }
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer,
                         AsData(Tokenizer::Load(flags.model)));
  return tokenizer->Encode(text, {.add_special_tokens = true});
}

// One f32 tensor `logits` [T, V], some rows at a time.
absl::Status WriteLogits(Context& ctx, const Decoder& decoder, const Tensor& hidden,
                         const std::string& path) {
  constexpr int64_t kRows = 64;
  int64_t tokens = hidden.dim(0);
  CADRE_ASSIGN_OR_RETURN(
      SafetensorsWriter writer,
      SafetensorsWriter::Create(
          path,
          {{.name = "logits", .type = StoredType::kF32, .shape = {tokens, decoder.spec().vocab}}},
          {}));
  for (int64_t row = 0; row < tokens; row += kRows) {
    Tensor part = hidden.Narrow(row, std::min(kRows, tokens - row));
    Tensor logits = ops::CastTensor(ctx, ops::Logits(ctx, part, decoder.head()), DType::kF32);
    CADRE_RETURN_IF_ERROR(writer.Append(std::span(logits.raw(), logits.bytes())));
  }
  return writer.Finish();
}

// What to print: the first token has no logprob.
Json Document(Context& ctx, const std::vector<int32_t>& ids, const Tensor& logprobs) {
  Tensor wide = ops::CastTensor(ctx, logprobs, DType::kF64);
  Json values = Json::array({nullptr});
  for (size_t i = 1; i < ids.size(); ++i) values.push_back(wide.data<double>()[i]);
  return {{"ids", ids}, {"logprobs", std::move(values)}};
}

absl::Status RunScore(const ScoreFlags& flags) {
  CADRE_ASSIGN_OR_RETURN(Compute compute, ResolveCompute(flags.compute, "score"));
  CADRE_ASSIGN_OR_RETURN(
      const ops::KvQuantization quantization,
      ParseKvCacheDType("--kv-cache-dtype", flags.kv_cache_dtype, compute.dtype));
  CADRE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, ReadIds(flags));
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = compute.threads};
  CADRE_ASSIGN_OR_RETURN(
      std::unique_ptr<Model> model,
      AsData(LoadModel(ctx, flags.model, {.dtype = compute.dtype, .weights = compute.weights})));
  ctx.parameters = &model->parameters();
  CADRE_RETURN_IF_ERROR(CheckTokens(model->decoder(), ids));
  Batch batch = PackSequences(allocator, std::span(&ids, 1));
  batch.kv_quantization = quantization;
  Scores scores = ScoreBatch(ctx, model->decoder(), batch);
  if (!flags.logits.empty()) {
    CADRE_RETURN_IF_ERROR(WriteLogits(ctx, model->decoder(), scores.hidden, flags.logits));
  }
  Json json = Document(ctx, ids, scores.logprobs);
  if (flags.json) {
    std::printf("%s\n", json.dump().c_str());
    return absl::OkStatus();
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    std::printf("%d\t%s\n", ids[i], json["logprobs"][i].dump().c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddScoreCommand(CLI::App& root, absl::Status* status) {
  auto flags = std::make_shared<ScoreFlags>();
  CLI::App* command = root.add_subcommand("score", "Log probabilities of given tokens");
  command->add_option("--model", flags->model, kModelHelp)->required();
  command->add_option("--ids", flags->ids, "Token ids: 1,2,3")->delimiter(',');
  command->add_option("--text", flags->text,
                      "File with the text, encoded by the model's tokenizer");
  command->add_option("--logits", flags->logits, "Safetensors file to write the logits to");
  command
      ->add_option("--kv-cache-dtype", flags->kv_cache_dtype,
                   "Score as a server with such a cache does: auto, bf16, int8 or int4")
      ->capture_default_str();
  command->add_flag("--json", flags->json, "One JSON document: ids, logprobs");
  AddComputeFlags(*command, &flags->compute);
  command->callback([flags, status] {
    flags->model = ModelFolder(flags->model);
    *status = RunScore(*flags);
  });
}

}  // namespace cadre::cli
