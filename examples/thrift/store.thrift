/**
 * The service of this example: a key-value store that can also calculate. It has one of each thing
 * that Thrift knows: structs with required, default and optional fields, an enum, lists, maps,
 * exceptions, inheritance and a call without an answer.
 */

enum Operation {
  ADD = 1,
  SUBTRACT = 2,
  MULTIPLY = 3,
  DIVIDE = 4
}

struct Calculation {
  1: required Operation operation,
  2: required i64 left,
  3: required i64 right
}

/** The calculation has no answer: a division by zero, or a result beyond 64 bits. */
exception CannotCalculate {
  1: required Calculation calculation,
  2: required string why
}

service Calculator {
  /** Rounds towards zero. */
  i64 calculate(1: Calculation calculation) throws (1: CannotCalculate cannot),

  /** Wraps around beyond 64 bits. */
  i64 sum(1: list<i64> numbers)
}

struct Entry {
  1: required string key,
  2: required binary value,
  3: optional map<string, string> labels
}

/** There is no entry with this key. */
exception NotFound {
  1: required string key
}

/** The store has no room for this entry. */
exception Full {
  1: required i64 limit_bytes
}

service Store extends Calculator {
  void ping(),

  /** Puts an entry in, in place of the one with its key; says whether there was one. */
  bool put(1: Entry entry) throws (1: Full full),

  Entry get(1: string key) throws (1: NotFound notFound),

  /** The values of those keys that are there. */
  map<string, binary> getAll(1: list<string> keys),

  /** Keys that begin so, in their order, this many at most. */
  list<string> find(1: string beginning, 2: i32 most),

  /** Takes an entry out. Nothing is answered, whether it was there or not. */
  oneway void forget(1: string key)
}
