// The machine's ceilings, measured in the run that quotes them: a bench reports ratios to these,
// since a shared machine's absolute speed drifts.
#pragma once

namespace cadre::bench {

// FLOP/s of oneDNN's packed product in bf16 (or f32) at 2048^3 on `threads` threads: the best of
// `repeats`, into fp32 and into the operands' type, whichever is faster.
double GemmPeak(int threads, bool bf16, int repeats = 10);

// Bytes/s of reading `bytes` of memory on `threads` threads: the best of `repeats`.
double ReadBandwidth(int threads, long bytes = 1L << 30, int repeats = 5);

double Now();  // seconds, monotonic

}  // namespace cadre::bench
