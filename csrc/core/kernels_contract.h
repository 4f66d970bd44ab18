/* To be included first: a · b + c of vectors becomes one instruction where there is one. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast") /* vectors have no fma builtin */
#else
#pragma STDC FP_CONTRACT ON
#endif
