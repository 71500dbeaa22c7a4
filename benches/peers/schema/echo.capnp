@0xb7c92f0d5e41a683;

interface Echo {
  unary @0 (data :Data) -> (data :Data);
}
