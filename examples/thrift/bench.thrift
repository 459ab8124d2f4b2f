/** What the benchmark asks for: the three cases that were published for KCM and Thrift. */
service Bench {
  /** Drops the data; answers with the number. */
  i64 discard(1: i64 number, 2: binary data),

  /** Works for as long as was drawn for this number, then answers with it. */
  i64 work(1: i64 number),

  /** Answers with the number. */
  i64 echo(1: i64 number)
}
