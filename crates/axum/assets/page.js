// The page for people. No framework and nothing from elsewhere: it also shows how little a client of Tidewire needs.

const endpoint = document.querySelector('meta[name="graphql"]').content;
const find = (id) => document.getElementById(id);

// --- One WebSocket, spoken as graphql-transport-ws -------------------------------------------------------------------------------------

/** Runs operations over one socket. `onClose` is told when it is gone; whoever wants to go on connects anew. */
class Socket {
  #operations = new Map();
  #last = 0;

  constructor(onOpen, onClose) {
    const url = new URL(endpoint, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    this.socket = new WebSocket(url, "graphql-transport-ws");
    this.socket.onopen = () => this.#send({ type: "connection_init" });
    this.socket.onclose = onClose;
    this.socket.onmessage = ({ data }) => {
      const { type, id, payload } = JSON.parse(data);
      const operation = this.#operations.get(id);
      if (type === "connection_ack") onOpen();
      if (type === "ping") this.#send({ type: "pong" });
      if (type === "next") operation?.next(payload);
      if (type === "error") operation?.next({ errors: payload });
      if (type === "error" || type === "complete") {
        this.#operations.delete(id);
        operation?.done?.();
      }
    };
  }

  #send(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  /** Starts an operation; gives a function that stops it. */
  run(payload, operation) {
    const id = String(++this.#last);
    this.#operations.set(id, operation);
    this.#send({ type: "subscribe", id, payload });
    return () => {
      if (this.#operations.delete(id)) this.#send({ type: "complete", id });
    };
  }

  close() {
    this.socket.onclose = null;
    this.socket.close();
  }
}

// --- Running a document ----------------------------------------------------------------------------------------------------------------

const editor = find("document");
let stopRunning = () => {};

function show(value, began) {
  find("answer").textContent = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  find("took").textContent = began === undefined ? "" : `${Math.round(performance.now() - began)} ms`;
}

async function run() {
  stopRunning();
  localStorage.setItem("tidewire.document", editor.value);
  let variables;
  try {
    variables = JSON.parse(find("variables").value || "{}");
  } catch (error) {
    return show(`The variables are not JSON: ${error.message}`);
  }
  const payload = { query: editor.value, variables };
  const began = performance.now();
  if (/^\s*subscription\b/m.test(editor.value)) return subscribe(payload);
  try {
    const response = await fetch(endpoint, {
      method: "POST",
      headers: { "content-type": "application/json", accept: "application/graphql-response+json, application/json;q=0.9" },
      body: JSON.stringify(payload),
    });
    show(await response.json(), began);
  } catch (error) {
    show(`The server did not answer: ${error.message}`);
  }
}

function subscribe(payload) {
  show("waiting for the first event …");
  find("stop").hidden = false;
  const socket = new Socket(
    () => socket.run(payload, { next: (event) => show(event), done: () => stopRunning() }),
    () => stopRunning(),
  );
  stopRunning = () => {
    socket.close();
    find("stop").hidden = true;
    stopRunning = () => {};
  };
}

find("run").onclick = run;
find("stop").onclick = () => stopRunning();
editor.onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
};

// --- Watching changes ------------------------------------------------------------------------------------------------------------------

const FEED = `subscription Feed($entities: [String!], $after: String) {
  changes(entities: $entities, after: $after) {
    cursor resync
    changes { entity operation key row previous changedFields actor at }
  }
}`;
const KEPT = 200;
const feed = { socket: null, cursor: null, retry: 0, timer: null };

function state(text, style) {
  find("state").textContent = text;
  find("state").className = `state ${style}`;
}

function connect(after) {
  disconnect();
  state("connecting", "");
  const entity = find("entity").value;
  const variables = { entities: entity ? [entity] : null, after: after ?? feed.cursor };
  feed.socket = new Socket(
    () => {
      state("live", "live");
      feed.retry = 0;
      feed.socket.run({ query: FEED, variables }, { next: take });
    },
    () => {
      // The cursor says where to go on, so nothing is missed however long this takes.
      feed.retry = Math.min(feed.retry + 1, 6);
      state("reconnecting", "down");
      feed.timer = setTimeout(connect, 2 ** feed.retry * 100 * (0.5 + Math.random()));
    },
  );
  find("pause").textContent = "Disconnect";
}

function disconnect() {
  clearTimeout(feed.timer);
  feed.socket?.close();
  feed.socket = null;
}

function take({ data, errors }) {
  if (errors) return note(errors[0].message);
  const event = data.changes;
  if (event.resync) note(`The cursor could not be continued (${event.resync.toLowerCase()}); changes follow from now on.`);
  if (event.cursor) {
    feed.cursor = event.cursor;
    find("cursor").value = event.cursor;
  }
  for (const change of event.changes) prepend(describe(change));
}

function prepend(item) {
  find("quiet").hidden = true;
  const list = find("changes");
  list.prepend(item);
  while (list.children.length > KEPT) list.lastChild.remove();
}

function note(text) {
  const item = element("li", "note", text);
  prepend(item);
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const written = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function describe({ entity, operation, key, row, previous, changedFields, actor, at }) {
  const summary = element("summary");
  summary.append(
    element("time", "", at?.slice(11, 23) ?? ""),
    element("span", operation, operation),
    element("strong", "", entity),
    element("span", "key", Object.values(key).map(written).join(", ")),
  );
  if (operation === "UPDATE") summary.append(element("span", "", changedFields.join(", ")));
  summary.append(element("span", "actor", actor ?? ""));
  const table = element("table");
  for (const field of Object.keys(row ?? previous)) {
    const line = table.insertRow();
    line.insertCell().textContent = field;
    const cell = line.insertCell();
    const changed = operation === "UPDATE" && changedFields.includes(field);
    if (changed || !row) cell.append(element("del", "", written(previous[field])), " ");
    if (row) cell.append(element(changed ? "ins" : "span", "", written(row[field])));
  }
  const details = element("details");
  details.append(summary, table);
  const item = element("li");
  item.append(details);
  return item;
}

find("pause").onclick = () => {
  if (feed.socket) {
    disconnect();
    state("disconnected", "down");
    find("pause").textContent = "Connect";
  } else {
    connect();
  }
};
find("clear").onclick = () => {
  find("changes").replaceChildren();
  find("quiet").hidden = false;
};
find("entity").onchange = () => connect();
find("copy").onclick = async () => {
  try {
    await navigator.clipboard.writeText(find("cursor").value);
    find("copy").textContent = "Copied";
  } catch {
    // Without leave to use the clipboard (a page that is not served securely), selecting is the next best.
    find("cursor").select();
    document.execCommand("copy");
    find("copy").textContent = "Copied";
  }
  setTimeout(() => { find("copy").textContent = "Copy"; }, 1200);
};
find("resume").onsubmit = (event) => {
  event.preventDefault();
  connect(find("cursor").value.trim());
};

// --- What there is to ask for, read from the schema ------------------------------------------------------------------------------------

const INTROSPECTION = `{ __schema {
  queryType { fields { name type { ofType { name fields { name type { ofType { name ofType { ofType { name } } } } } } } } }
  types { name fields { name type { kind name ofType { kind name } } } } } }`;

/** The fields of a type that have no fields themselves. */
function leaves(types, name) {
  const leaf = ({ type }) => ["SCALAR", "ENUM"].includes(type.kind) || (type.kind === "NON_NULL" && ["SCALAR", "ENUM"].includes(type.ofType.kind));
  return types.get(name).fields.filter(leaf).map((field) => field.name);
}

function examples(entities) {
  const made = [];
  for (const { field, columns } of entities) {
    const selection = columns.slice(0, 8).join(" ");
    made.push([`${field}: a page`, `query {\n  ${field}(pagination: { page: { page: 0, limit: 10 } }) {\n    nodes { ${selection} }\n    paginationInfo { total pages }\n  }\n}\n`]);
    made.push([`${field}: its changes`, `subscription {\n  ${field}Changes {\n    cursor sequence upToDate\n    changes { event operation node { ${selection} } changedFields actor at }\n  }\n}\n`]);
    made.push([`${field}: a live query`, `subscription {\n  ${field}(pagination: { page: { page: 0, limit: 10 } }) {\n    nodes { ${selection} }\n  }\n}\n`]);
  }
  return made;
}

async function readSchema() {
  const response = await fetch(endpoint, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ query: INTROSPECTION }),
  });
  const { data } = await response.json();
  const types = new Map((data?.__schema?.types ?? []).map((type) => [type.name, type]));
  const entities = [];
  for (const { name, type } of data?.__schema?.queryType.fields ?? []) {
    const nodes = type.ofType?.fields?.find((field) => field.name === "nodes");
    const object = nodes?.type.ofType?.ofType?.ofType?.name;
    if (object) entities.push({ field: name, columns: leaves(types, object) });
  }
  for (const { field } of entities) find("entity").append(new Option(field, field));
  const all = examples(entities);
  find("example").append(new Option("choose …", ""), ...all.map(([name], index) => new Option(name, index)));
  find("example").onchange = ({ target }) => {
    if (target.value !== "") editor.value = all[target.value][1];
  };
  editor.value = localStorage.getItem("tidewire.document") ?? all[0]?.[1] ?? "{ __typename }\n";
}

readSchema().catch(() => show("The schema could not be read. Is introspection turned off?"));
fetch("graphiql/", { method: "HEAD" }).then(({ ok }) => { find("graphiql").hidden = !ok; }).catch(() => {});
connect();
