// A `wasi:http` 0.2 component in JavaScript: greets and says which pod answered.
import { getEnvironment } from 'wasi:cli/environment@0.2.10';

addEventListener('fetch', (event) => event.respondWith(answer(event.request)));

function answer(request) {
  if (new URL(request.url).pathname !== '/') {
    return new Response('not found\n', { status: 404 });
  }
  const environment = Object.fromEntries(getEnvironment());
  const name = environment.POD_NAME ?? environment.HOSTNAME ?? 'salp';
  return new Response(`Hello from ${name}\n`);
}
