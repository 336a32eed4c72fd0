/**
 * A reader of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)
 * that is given the stream piece by piece, cut anywhere, and calls `onEvent(name, data)`.
 */
export function eventReader(onEvent) {
  let rest = "";
  return (piece) => {
    const blocks = (rest + piece).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const event = read(block);
      if (event) onEvent(event.name, event.data);
    }
  };
}

/** Comments, which begin with a colon, keep a connection open and say nothing. */
function read(block) {
  let name = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    const [, field, value] = line.match(/^([^:]*):? ?(.*)$/);
    if (field === "event") name = value;
    if (field === "data") data.push(value);
  }
  return data.length ? { name, data: data.join("\n") } : null;
}
