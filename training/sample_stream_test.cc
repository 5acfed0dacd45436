#include "training/sample_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

namespace cadre {
namespace {

// Document d of n holds tokens 1000·d, 1000·d + 1, …: an id names its place.
std::shared_ptr<MemoryDocuments> Documents(const std::vector<int>& lengths, int base = 0) {
  auto documents = std::make_shared<MemoryDocuments>("memory");
  for (size_t d = 0; d < lengths.size(); ++d) {
    std::vector<int32_t> ids(lengths[d]);
    for (int t = 0; t < lengths[d]; ++t) ids[t] = base + static_cast<int32_t>(d) * 1000 + t;
    documents->Add(ids);
  }
  return documents;
}

std::vector<int> RandomLengths(uint64_t seed, int documents, int longest) {
  RandomKey key(seed, "lengths");
  std::vector<int> lengths;
  for (int d = 0; d < documents; ++d) {
    lengths.push_back(static_cast<int>(key.U64(d) % (longest + 1)));
  }
  return lengths;
}

SampleStream Make(std::vector<WeightedSource> sources, SampleStreamOptions options) {
  auto stream = SampleStream::Create(std::move(sources), options);
  CADRE_CHECK(stream.ok(), "{}", Message(stream.status()));
  return std::move(*stream);
}

PackedBatch Sample(SampleStream& stream, int64_t i) {
  PackedBatch batch;
  CADRE_CHECK(stream.Append(i, &batch).ok());
  return batch;
}

TEST(SampleStream, RowsInFileOrderAreWhatTheDefinitionSays) {
  SampleStream stream = Make({{Documents({3, 1, 4})}}, {.seq_len = 4, .shuffle = false});
  PackedBatch batch;
  ASSERT_TRUE(stream.Append(0, &batch).ok());
  ASSERT_TRUE(stream.Append(1, &batch).ok());
  EXPECT_EQ(batch.ids, (std::vector<int32_t>{0, 1, 2, 1000, 2000, 2001, 2002, 2003}));
  EXPECT_EQ(batch.targets, (std::vector<int32_t>{1, 2, -1, -1, 2001, 2002, 2003, -1}));
  EXPECT_EQ(batch.positions, (std::vector<int32_t>{0, 1, 2, 0, 0, 1, 2, 3}));
  EXPECT_EQ(batch.offsets, (std::vector<int32_t>{0, 3, 4, 8}));
  EXPECT_EQ(batch.row_offsets, (std::vector<int32_t>{0, 4, 8}));
  EXPECT_EQ(batch.loss_tokens, 5);
}

TEST(SampleStream, ARowCutsADocumentAndKeepsItsNextTokenAsTarget) {
  SampleStream stream = Make({{Documents({10})}}, {.seq_len = 4, .shuffle = false});
  EXPECT_EQ(Sample(stream, 0).targets, (std::vector<int32_t>{1, 2, 3, 4}));
  EXPECT_EQ(Sample(stream, 1).ids, (std::vector<int32_t>{4, 5, 6, 7}));
  EXPECT_EQ(Sample(stream, 1).positions, (std::vector<int32_t>{0, 1, 2, 3}));
  // The third row goes over into the next epoch, without a target across the border.
  EXPECT_EQ(Sample(stream, 2).ids, (std::vector<int32_t>{8, 9, 0, 1}));
  EXPECT_EQ(Sample(stream, 2).targets, (std::vector<int32_t>{9, -1, 1, 2}));
}

// Every token of every document is an input once an epoch, and a target once unless a document
// starts with it.
TEST(SampleStream, CoversEachDocumentOncePerEpoch) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    std::vector<int> lengths = RandomLengths(seed, 40, 30);
    int64_t tokens = 0, inner = 0;
    for (int length : lengths) {
      tokens += length;
      inner += std::max(0, length - 1);
    }
    const int64_t seq_len = 7, epochs = 3;
    SampleStream stream = Make({{Documents(lengths)}}, {.seq_len = seq_len, .seed = seed});
    std::map<int32_t, int> inputs, targets;
    int64_t seen = 0;
    for (int64_t i = 0; seen < epochs * tokens; ++i) {
      PackedBatch batch = Sample(stream, i);
      for (size_t t = 0; t < batch.ids.size() && seen < epochs * tokens; ++t, ++seen) {
        ++inputs[batch.ids[t]];
        if (batch.targets[t] < 0) continue;
        ++targets[batch.targets[t]];
        ASSERT_EQ(batch.targets[t], batch.ids[t] + 1);
      }
    }
    ASSERT_EQ(inputs.size(), static_cast<size_t>(tokens));
    ASSERT_EQ(targets.size(), static_cast<size_t>(inner));
    for (auto [id, count] : inputs) ASSERT_EQ(count, epochs) << id;
    for (auto [id, count] : targets) ASSERT_EQ(count, epochs) << id;
  }
}

TEST(SampleStream, IsAPureFunctionOfSeedAndIndex) {
  auto documents = Documents(RandomLengths(5, 60, 50));
  auto other = Documents(RandomLengths(6, 30, 20), 500000);
  SampleStreamOptions options{.seq_len = 16, .seed = 99};
  SampleStream forward = Make({{documents, 0.7}, {other, 0.3}}, options);
  SampleStream resumed = Make({{documents, 0.7}, {other, 0.3}}, options);
  std::vector<PackedBatch> rows;
  for (int64_t i = 0; i < 600; ++i) rows.push_back(Sample(forward, i));
  // Backwards, then at random: the order of asking changes nothing.
  for (int64_t i = 599; i >= 0; i -= 7) ASSERT_EQ(Sample(resumed, i).ids, rows[i].ids) << i;
  SampleStream late = Make({{documents, 0.7}, {other, 0.3}}, options);
  for (int64_t i = 431; i < 600; ++i) {
    PackedBatch batch = Sample(late, i);
    ASSERT_EQ(batch.ids, rows[i].ids) << i;
    ASSERT_EQ(batch.targets, rows[i].targets) << i;
  }
}

TEST(SampleStream, SeedsAndEpochsShuffleDifferently) {
  auto documents = Documents(std::vector<int>(64, 8));
  auto first_ids = [&](uint64_t seed, int64_t row) {
    SampleStream stream = Make({{documents}}, {.seq_len = 8, .seed = seed});
    return Sample(stream, row).ids;
  };
  EXPECT_EQ(first_ids(1, 0), first_ids(1, 0));
  EXPECT_NE(first_ids(1, 0), first_ids(2, 0));
  EXPECT_NE(first_ids(1, 0), first_ids(1, 64));  // row 64 starts the second epoch
}

TEST(SampleStream, LossTokensAreKnownBeforeTheBatch) {
  auto plain = Documents(RandomLengths(8, 50, 40));
  auto masked = std::make_shared<MemoryDocuments>("masked");
  RandomKey key(3, "mask");
  for (int d = 0; d < 50; ++d) {
    std::vector<int32_t> ids(1 + key.U64(d) % 30);
    std::vector<uint8_t> mask(ids.size());
    for (size_t t = 0; t < ids.size(); ++t) {
      ids[t] = static_cast<int32_t>(100000 + d * 100 + t);
      mask[t] = key.U64(t, d + 1) % 3 == 0;
    }
    masked->Add(ids, mask);
  }
  SampleStream stream = Make({{plain, 1}, {masked, 2}}, {.seq_len = 13});
  for (int64_t begin = 0; begin < 120; begin += 8) {
    PackedBatch batch;
    for (int64_t i = begin; i < begin + 8; ++i) ASSERT_TRUE(stream.Append(i, &batch).ok());
    ASSERT_EQ(batch.ids.size(), 8u * 13u);
    ASSERT_EQ(*stream.LossTokens(begin, 8), batch.loss_tokens);
    int64_t counted = std::count_if(batch.targets.begin(), batch.targets.end(),
                                    [](int32_t target) { return target >= 0; });
    ASSERT_EQ(batch.loss_tokens, counted);
  }
}

TEST(SampleStream, MaskedTokensAreNoTargets) {
  auto documents = std::make_shared<MemoryDocuments>("chat");
  documents->Add({10, 11, 12, 13}, {0, 0, 1, 1});
  documents->Add({20, 21}, {1, 1});
  SampleStream stream = Make({{documents}}, {.seq_len = 5, .shuffle = false});
  EXPECT_EQ(Sample(stream, 0).targets, (std::vector<int32_t>{-1, 12, 13, -1, 21}));
}

TEST(SampleStream, RefusesIdsOutsideTheVocabulary) {
  auto stream = Make({{Documents({9, 9})}}, {.seq_len = 8, .shuffle = false, .vocab_size = 1000});
  PackedBatch batch;
  EXPECT_TRUE(stream.Append(0, &batch).ok());
  absl::Status status = stream.Append(1, &batch);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(Message(status).find("document 1 has token id 1000"), std::string::npos);
}

TEST(SampleStream, RefusesACorpusShorterThanARow) {
  auto stream = SampleStream::Create({{Documents({3, 4})}}, {.seq_len = 7});
  ASSERT_EQ(stream.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Message(stream.status()),
            "memory: 7 tokens in 2 documents, but one row takes data.seq_len + 1 = 8; lower "
            "data.seq_len or add data");
  EXPECT_TRUE(SampleStream::Create({{Documents({3, 4})}}, {.seq_len = 6}).ok());
  EXPECT_FALSE(SampleStream::Create({}, {}).ok());
  EXPECT_FALSE(SampleStream::Create({{Documents({})}}, {.seq_len = 1}).ok());
}

TEST(Blend, CountsAndSharesAgreeWithAReplay) {
  for (const std::vector<double>& weights :
       {std::vector<double>{1}, {0.5, 0.5}, {0.7, 0.2, 0.1}, {1, 0, 3, 0}, {1e-3, 1, 7}}) {
    auto blend = Blend::Create(weights, 42);
    ASSERT_TRUE(blend.ok());
    double total = 0;
    for (double weight : weights) total += weight;
    std::vector<int64_t> counts(weights.size());
    for (int64_t i = 0; i < 20000; ++i) {
      Blend::Pick pick = blend->At(i);
      ASSERT_EQ(pick.row, counts[pick.source]) << i;
      ++counts[pick.source];
      for (size_t k = 0; k < weights.size(); ++k) {
        double share = weights[k] / total * static_cast<double>(i + 1);
        ASSERT_NEAR(static_cast<double>(counts[k]), share, 6.0) << "sample " << i;
      }
    }
  }
}

TEST(Blend, HoldsFarFromTheStart) {
  auto blend = Blend::Create({0.25, 0.75}, 7);
  ASSERT_TRUE(blend.ok());
  int64_t far = int64_t{1} << 52;
  Blend::Pick last[2] = {};
  int64_t seen[2] = {};
  for (int64_t i = far; i < far + 1000; ++i) {
    Blend::Pick pick = blend->At(i);
    if (seen[pick.source]++ > 0) {
      ASSERT_EQ(pick.row, last[pick.source].row + 1);
    }
    last[pick.source] = pick;
  }
  EXPECT_NEAR(static_cast<double>(last[1].row) / static_cast<double>(far), 0.75, 1e-9);
}

TEST(Blend, RefusesImpossibleWeights) {
  EXPECT_FALSE(Blend::Create({}, 1).ok());
  EXPECT_FALSE(Blend::Create({0, 0}, 1).ok());
  EXPECT_FALSE(Blend::Create({1, -1}, 1).ok());
}

TEST(SplitDocuments, HoldsOutTheLastDocuments) {
  auto split = SplitDocuments(Documents({5, 6, 7, 8, 9, 10, 11, 12, 13, 14}), 0.2);
  ASSERT_TRUE(split.ok());
  EXPECT_EQ(split->train->size(), 8);
  ASSERT_EQ(split->validation->size(), 2);
  EXPECT_EQ(split->validation->Length(0), 13);
  std::vector<int32_t> ids(2);
  ASSERT_TRUE(split->validation->Read(1, 3, ids).ok());
  EXPECT_EQ(ids, (std::vector<int32_t>{9003, 9004}));
  // A tiny fraction still holds one document out.
  EXPECT_EQ(SplitDocuments(Documents({5, 6}), 0.001)->validation->size(), 1);
  EXPECT_FALSE(SplitDocuments(Documents({5}), 0.1).ok());
}

}  // namespace
}  // namespace cadre
