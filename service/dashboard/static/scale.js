// Axes: from values to pixels, and the round values that get a tick.

const ROUND = [1, 2, 5];

/** Round values in [low, high], about `count` of them. */
export function linearTicks(low, high, count) {
  if (!(high > low)) return [low];
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([...ROUND, 10].find((round) => round * power >= raw) ?? 10);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-12) + 1e-300; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

/** Powers of ten; between them 2 and 5, where the range is short; linear ones, where it is shorter still. */
export function logTicks(low, high, count) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const inside = (value) => value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9);
  const powers = Array.from({ length: last - first + 1 }, (_, i) => first + i);
  const tens = powers.map((power) => 10 ** power).filter(inside);
  if (tens.length > 2) {
    const every = Math.ceil(tens.length / (count + 1));
    return tens.filter((_, i) => i % every === 0);
  }
  const fine = powers.flatMap((power) => ROUND.map((round) => round * 10 ** power)).filter(inside);
  return fine.length > 2 ? fine : linearTicks(low, high, count);
}

/** The first of 10, 20, 50, 100, 200, … that is no less. */
export function nextRound(value) {
  for (let power = 10; ; power *= 10) {
    const found = ROUND.find((round) => round * power >= value);
    if (found) return found * power;
  }
}

/** A scale from [low, high] to [from, to] in pixels. */
export function scale({ low, high, from, to, log = false, ticks }) {
  const way = log ? Math.log10 : (value) => value;
  const [start, end] = [way(low), way(high)];
  const at = (value) => (end === start ? (from + to) / 2 : from + ((way(value) - start) / (end - start)) * (to - from));
  return { at, ticks: log ? logTicks(low, high, ticks) : linearTicks(low, high, ticks) };
}

/** [low, high] of the values with some air; a range even where all values are the same. */
export function range(values, log) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (log) {
    const air = Math.max((high / low) ** 0.06, 1.05);
    return [low / air, high * air];
  }
  const air = Math.max(0.06 * (high - low), 0.02 * Math.abs(high), 1e-12);
  return [low >= 0 ? Math.max(0, low - air) : low - air, high + air];
}
