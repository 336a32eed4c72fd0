/** 3.2 → 0:03, 3725 → 1:02:05. */
export function clock(timeS) {
  const whole = Math.max(0, Math.floor(timeS));
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const tail = `${minutes}:${String(whole % 60).padStart(2, "0")}`;
  return hours ? `${hours}:${tail.padStart(5, "0")}` : tail;
}
