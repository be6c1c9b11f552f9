/*
 * The npm package `ws`: node node_ws.js port deflate [certificate key]. The package is the one that the
 * interoperability tests have installed.
 */
'use strict';

const fs = require('fs');
const http = require('http');
const https = require('https');
const path = require('path');
const { WebSocketServer } = require(path.join(__dirname, '..', '..', 'tests', 'support', 'parties', 'node_modules', 'ws'));

const BACKLOG = 4096;
const [port, deflate, certificate, key] = process.argv.slice(2);
const server = certificate
  ? https.createServer({ cert: fs.readFileSync(certificate), key: fs.readFileSync(key) })
  : http.createServer();
const sockets = new WebSocketServer({ server, perMessageDeflate: deflate === 'true' });

sockets.on('connection', (socket) => {
  socket.on('error', () => {}); // a client that just went
  socket.on('message', (data, binary) => socket.send(data, { binary }));
});
server.listen({ port: Number(port), host: '127.0.0.1', backlog: BACKLOG });
