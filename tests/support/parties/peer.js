/*
 * The two npm packages `ws` and `watershed` under remote control: one JSON request per line on standard input,
 * one JSON answer per line on standard output. It trusts the test that started it, and never decides anything
 * itself; it ends when its standard input does.
 *
 * Payloads travel as base64, so that any bytes survive the line format.
 */
'use strict';

const http = require('http');
const readline = require('readline');
const { WebSocket, WebSocketServer } = require('ws');
const { Watershed } = require('watershed');

const PROTOCOLS = ['echo.watershed', 'json'];
const FRAGMENTED = ['one ', 'two ', 'three'];
const shed = new Watershed();
const sessions = [];

/* A queue whose readers may come before its items. */
class Mailbox {
  items = [];
  readers = [];
  put(item) {
    if (this.readers.length > 0) this.readers.shift()(item);
    else this.items.push(item);
  }
  get() {
    if (this.items.length > 0) return Promise.resolve(this.items.shift());
    return new Promise((resolve) => this.readers.push(resolve));
  }
}

/* node-watershed tells the codes it knows by name, and any other one as null. */
const WATERSHED_CODES = {
  NORMAL: 1000, GOING_AWAY: 1001, PROTOCOL_ERROR: 1002, UNACCEPTABLE: 1003, MALFORMED: 1007,
  POLICY_VIOLATION: 1008, TOO_BIG: 1009, MISSING_EXTENSION: 1010, UNEXPECTED_ERROR: 1011,
};

/* Both libraries' connections as one shape: messages, pongs and the end in mailboxes, and seven verbs. */
class WsConnection {
  messages = new Mailbox();
  pongs = new Mailbox();
  end = new Mailbox();
  constructor(socket) {
    this.socket = socket;
    socket.on('message', (data, binary) => this.messages.put({ binary, data: data.toString('base64') }));
    socket.on('pong', (data) => this.pongs.put(data));
    socket.on('error', () => {}); // 'close' follows, with what there is to tell
    socket.on('close', (code, reason) => this.end.put({ code, reason: reason.toString(), reset: code === 1006 }));
  }
  get protocol() { return this.socket.protocol || null; }
  get compressed() { return this.socket.extensions.includes('permessage-deflate'); }
  send(data, binary) { this.socket.send(data, { binary }); }
  fragments(parts, binary) {
    parts.forEach((part, i) => this.socket.send(part, { binary, fin: i === parts.length - 1 }));
  }
  ping(data) { this.socket.ping(data); }
  close(code, reason) { code === null ? this.socket.close() : this.socket.close(code, reason); }
  abort() { this.socket.terminate(); }
}

class WatershedConnection {
  messages = new Mailbox();
  pongs = new Mailbox();
  end = new Mailbox();
  reset = false;
  compressed = false;
  constructor(connection) {
    this.connection = connection;
    const put = (binary) => (data) =>
      this.messages.put({ binary, data: Buffer.from(data).toString('base64') });
    connection.on('text', put(false));
    connection.on('binary', put(true));
    connection.on('pong', (data) => this.pongs.put(data));
    connection.on('error', () => {}); // 'end' follows
    connection.on('connectionReset', () => { this.reset = true; });
    connection.on('end', (name, reason) => this.end.put(
      { code: WATERSHED_CODES[name] ?? null, reason: reason || '', reset: this.reset }));
  }
  get protocol() { return this.connection.getProtocol(); }
  /* A copy: the client side masks the caller's buffer in place. */
  send(data, binary) { this.connection.send(binary ? Buffer.from(data) : data.toString()); }
  ping(data) { this.connection._ws_writePing(Buffer.from(data)); }
  close(code, reason) { this.connection.end(reason); }
  abort() { this.connection.destroy(); }
}

/* The echo server's rules, the same for both libraries. */
async function serve(connection) {
  for (;;) {
    const message = await Promise.race([connection.messages.get(), connection.ended.promise]);
    if (message === null) return;
    const data = Buffer.from(message.data, 'base64');
    const text = message.binary ? '' : data.toString();
    if (text.startsWith('!close ')) {
      const [, code, reason] = /^!close (\d+) (.*)$/.exec(text);
      connection.close(Number(code), reason);
    } else if (text === '!abort') connection.abort();
    else if (text === '!fragments') connection.fragments(FRAGMENTED, false);
    else if (text.startsWith('!ping ')) {
      connection.ping(Buffer.from(text.slice(6)));
      connection.send(Buffer.from('pong ' + (await connection.pongs.get()).toString()), false);
    } else connection.send(data, message.binary);
  }
}

/* Keep the ending for whoever asks for it, and wake the echo loop up. */
function watch(connection, report) {
  connection.ended = {};
  connection.ended.promise = new Promise((resolve) => { connection.ended.resolve = resolve; });
  connection.end.get().then((ending) => { report(ending); connection.ended.resolve(null); });
  return serve(connection);
}

const endings = new Map(); // path -> Mailbox
function endingsOf(path) {
  if (!endings.has(path)) endings.set(path, new Mailbox());
  return endings.get(path);
}

function refuse(socket, status) {
  socket.end(`HTTP/1.1 ${status} ${http.STATUS_CODES[status]}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`);
}

function listen({ library }) {
  const server = http.createServer();
  const wss = new WebSocketServer({
    noServer: true,
    perMessageDeflate: true,
    handleProtocols: (offered) => [...offered].find((one) => PROTOCOLS.includes(one)) ?? false,
  });
  server.on('upgrade', (request, socket, head) => {
    socket.on('error', () => {});
    if (request.url.startsWith('/forbidden')) return refuse(socket, 403);
    const report = (ending) => endingsOf(request.url).put(ending);
    if (library === 'ws') {
      wss.handleUpgrade(request, socket, head, (accepted) => watch(new WsConnection(accepted), report));
      return;
    }
    try {
      const offered = request.headers['sec-websocket-protocol'];
      const accepted = shed.accept(request, socket, head, false, offered ? PROTOCOLS : undefined);
      watch(new WatershedConnection(accepted), report);
    } catch (error) {
      refuse(socket, 400);
    }
  });
  return new Promise((resolve) =>
    server.listen(0, '127.0.0.1', () => resolve({ port: server.address().port })));
}

function opened(connection) {
  connection.session = sessions.push(connection) - 1;
  return { session: connection.session, protocol: connection.protocol, compressed: connection.compressed };
}

function open({ library, url, protocols, compression }) {
  return new Promise((resolve, reject) => {
    if (library === 'ws') {
      const socket = new WebSocket(url, protocols, { perMessageDeflate: compression, handshakeTimeout: 10000 });
      // Listeners at once: a message may come in the same packet as the 101.
      const connection = new WsConnection(socket);
      socket.on('open', () => resolve(opened(connection)));
      socket.on('unexpected-response', (request, response) => {
        resolve({ refused: response.statusCode });
        request.destroy();
      });
      socket.on('error', reject);
      return;
    }
    const key = shed.generateKey();
    const headers = {
      Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Key': key, 'Sec-WebSocket-Version': '13',
    };
    if (protocols.length > 0) headers['Sec-WebSocket-Protocol'] = protocols.join(', ');
    const request = http.get(url.replace(/^ws:/, 'http:'), { headers, agent: false });
    request.on('upgrade', (response, socket, head) => {
      try {
        resolve(opened(new WatershedConnection(shed.connect(response, socket, head, key))));
      } catch (error) {
        socket.destroy();
        reject(error);
      }
    });
    request.on('response', (response) => {
      response.resume();
      resolve({ refused: response.statusCode });
    });
    request.on('error', reject);
  });
}

const operations = {
  listen,
  open,
  ending: ({ path }) => endingsOf(path).get(),
  send: ({ session, data, binary }) => sessions[session].send(Buffer.from(data, 'base64'), binary),
  fragments: ({ session, parts, binary }) =>
    sessions[session].fragments(parts.map((part) => Buffer.from(part, 'base64')), binary),
  receive: ({ session }) => sessions[session].messages.get(),
  ping: async ({ session, data }) => {
    sessions[session].ping(Buffer.from(data, 'base64'));
    return { data: (await sessions[session].pongs.get()).toString('base64') };
  },
  close: ({ session, code, reason }) => sessions[session].close(code, reason),
  abort: ({ session }) => sessions[session].abort(),
  ended: ({ session }) => sessions[session].end.get(),
};

const requests = readline.createInterface({ input: process.stdin });
requests.on('line', async (line) => {
  const { id, operation, ...rest } = JSON.parse(line);
  let answer;
  try {
    answer = { id, result: (await operations[operation](rest)) ?? null };
  } catch (error) {
    answer = { id, error: String(error.stack || error) };
  }
  process.stdout.write(JSON.stringify(answer) + '\n');
});
requests.on('close', () => process.exit(0));
