//! Reference decoding of GGUF blocks: the definition that `dequant`, packing and the interpreter share.
