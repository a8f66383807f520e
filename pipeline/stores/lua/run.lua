-- Which run of a server this is, as a number of 32 bits: another one after each start, and on another server.
local function run()
  return tonumber(string.sub(string.match(redis.call('INFO', 'server'), 'run_id:(%x+)'), 1, 8), 16)
end
