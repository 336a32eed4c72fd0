/** The files of a drop; those of a folder too, but for its hidden ones. */
export async function droppedFiles(transfer) {
  // Entries are gone once the event is over, so all are taken before the first is read.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  return (await Promise.all(entries.map(filesOf))).flat();
}

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const inside = await everything(entry.createReader());
  const shown = inside.filter((one) => !one.name.startsWith("."));
  return (await Promise.all(shown.map(filesOf))).flat();
}

/** A reader gives some entries at a time, and none at its end. */
async function everything(reader) {
  const all = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return all;
    all.push(...some);
  }
}
