// What the tests share. TIDEWIRE is where the server is, for example http://127.0.0.1:8000.

export const http = `${process.env.TIDEWIRE}/graphql`;
export const websocket = http.replace("http", "ws");

/** Asks by POST and gives the data; errors are thrown. */
export async function ask(query, variables) {
  const response = await fetch(http, {
    method: "POST",
    headers: { "content-type": "application/json", accept: "application/graphql-response+json" },
    body: JSON.stringify({ query, variables }),
  });
  const { data, errors } = await response.json();
  if (errors) throw new Error(JSON.stringify(errors));
  return data;
}

/** Writes a label and gives its id. */
export async function addLabel(name) {
  const { labelCreateOne } = await ask(
    `mutation ($name: String!) { labelCreateOne(data: { projectId: 1, name: $name, color: "#0b6e8f" }) { id } }`,
    { name },
  );
  return labelCreateOne.id;
}

/** Reads from an async iterator until the predicate holds for a value; gives all that were read. */
export async function until(iterator, predicate, patience = 20_000) {
  const read = [];
  const late = new Promise((_, reject) => {
    setTimeout(() => reject(new Error(`waited in vain; so far: ${JSON.stringify(read)}`)), patience).unref();
  });
  for (;;) {
    const { value, done } = await Promise.race([iterator.next(), late]);
    if (done) throw new Error(`ended early: ${JSON.stringify(read)}`);
    read.push(value);
    if (predicate(value)) return read;
  }
}
